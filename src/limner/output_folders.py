"""Folders that Limner itself wrote, known by the names of the files in them.

They hold pictures (previews, samples, pairs that are alike) that must not come back as data.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Collection
from pathlib import Path

_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a training run", ("config.yaml", "log.jsonl")),
    ("a training run", ("config.yaml", "checkpoint-*")),
    ("a checkpoint", ("config.yaml", "training_state.json")),
    ("an evaluation", ("evaluation.json", "pictures")),
    ("an evaluation", ("evaluation.json", "evaluation.html")),
    ("a data check", ("check.json", "problems.jsonl")),
    ("an exported model", ("model_index.json", "transformer")),
    ("an exported model", ("limner.safetensors",)),
    ("an autoencoder", ("config.json", "diffusion_pytorch_model.safetensors")),
    ("a store of latents or embeddings", ("key.json", "shard-*.safetensors")),
)
"""What a folder is -> names (or patterns) all of which are in it."""


def kind_of_output(folder: Path, names: Collection[str] | None = None) -> str | None:
    """What a folder is that Limner wrote, for people ("a training run"); None: something else.

    Args:
        names: of what is in it, where they are known already.
    """
    if names is None:
        try:
            names = os.listdir(folder)
        except OSError:
            return None
    for kind, signs in _SIGNS:
        if all(fnmatch.filter(names, s) if "*" in s else s in names for s in signs):
            return kind
    return None


def is_run_folder(folder: Path) -> bool:
    """Whether a training run of Limner's, or one of its checkpoints, is in this folder."""
    return kind_of_output(folder) in ("a training run", "a checkpoint")
