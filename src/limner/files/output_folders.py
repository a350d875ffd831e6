"""Recognise folders that Limner wrote by the names of their files.

They hold pictures (previews, samples, pairs that are alike) that must not come back as data. They
alone are written into again: what is somebody else's stays.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Collection
from pathlib import Path

from limner.files.folder_lock import TRAINING
from limner.files.small_files import read_yaml
from limner.files.system_names import is_left_by_itself, is_system_name

_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a training run", ("config.yaml", "log.jsonl")),
    ("a training run", ("config.yaml", "checkpoint-*")),
    ("a training run", (TRAINING,)),
    ("a checkpoint", ("config.yaml", "training_state.json")),
    ("an evaluation", ("evaluation.json", "pictures")),
    ("an evaluation", ("evaluation.json", "evaluation.html")),
    ("a data check", ("check.json", "problems.jsonl")),
    ("a data check", ("problems.jsonl", "pictures")),  # one that was killed
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


def visible_names(folder: Path) -> list[str]:
    """Of what is in a folder, sorted, without hidden files and those of systems (`.DS_Store`,
    `.gitkeep`, `Thumbs.db`): a folder without any counts as empty. [] where there is no folder."""
    try:
        return sorted(name for name in os.listdir(folder) if not is_system_name(name))
    except FileNotFoundError:
        return []


def foreign_names(
    folder: Path, ours: Collection[str] = (), like: re.Pattern[str] | None = None
) -> list[str]:
    """Of what is in a folder that is about to be replaced as a whole, sorted: what would be missed,
    hidden or not, is none of `ours`, and no file whose name is like ours. The name of a file, if
    that is there instead."""
    if folder.is_file():
        return [folder.name]
    names = os.listdir(folder) if folder.exists() else ()

    def is_ours(name: str) -> bool:
        return name in ours or bool(like and like.fullmatch(name) and not (folder / name).is_dir())

    return sorted(name for name in names if not is_ours(name) and not is_left_by_itself(name))


def is_training_run(folder: Path) -> bool:
    """Whether a run of Limner's wrote this folder. Other programs write a config.yaml and a
    log.jsonl, too, so that these are looked into."""
    try:
        numbered = [n for n in os.listdir(folder) if fnmatch.fnmatch(n, "checkpoint-*")]
        if any((folder / n / "training_state.json").is_file() for n in numbered):
            return True
        with (folder / "log.jsonl").open(encoding="utf-8") as log:
            line = log.readline(1_000_000)
        event = json.loads(line) if line else {"kind": "none yet", "step": 0}
        config = read_yaml(folder / "config.yaml")
    except (OSError, ValueError, RecursionError):
        return False
    return (
        isinstance(event, dict)
        and {"kind", "step"} <= event.keys()
        and isinstance(config, dict)
        and all(isinstance(config.get(section), dict) for section in ("data", "model", "training"))
    )


OURS = (
    *("previews", "samples", "pictures", "evaluation", "evaluation-checkpoint-*", "check"),
    *("checkpoint-*", "set-aside", "set-aside-*"),
    *("tensorboard", "transformer", "vae", "text_encoder"),
)
"""Folders that Limner makes in its own."""


def output_around(folder: Path) -> tuple[str, Path] | None:
    """(what it is, where) of the output of Limner's that a folder is, or that it was made in, as
    the previews of a run. A folder of people's own inside a run is none."""
    below, place = "", Path(os.path.realpath(folder))
    while True:
        may_be_ours = not below or any(fnmatch.fnmatch(below, name) for name in OURS)
        if may_be_ours and (kind := kind_of_output(place)):
            return kind, place
        if place == place.parent:
            return None
        below, place = place.name, place.parent


def is_run_folder(folder: Path) -> bool:
    """Whether a training run of Limner's, or one of its checkpoints, is in this folder."""
    return kind_of_output(folder) in ("a training run", "a checkpoint")
