"""Open any model by its name: a checkpoint, a run, a file of weights, or a published model."""

from __future__ import annotations

from pathlib import Path

from limner.checkpoint.find_model import find_model
from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.single_file import SUFFIX, WeightsFile


def open_model(path: str | Path) -> Checkpoint | WeightsFile:
    """A file of weights, a checkpoint folder, the newest checkpoint of a run folder, or the id of a
    published model (see `find_model`)."""
    path = find_model(path)
    in_checkpoint = (path.parent / "training_state.json").is_file()
    if path.suffix == SUFFIX and path.is_file() and not in_checkpoint:
        return WeightsFile.open(path)
    return Checkpoint.open(path)
