"""Recognise folders that Limner wrote by the names of their files.

They hold pictures (previews, samples, similar pairs) that must not be taken for data. Only such
folders are overwritten, never those of anybody else.
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
    ("a data check", ("problems.jsonl", "pictures")),  # left by a kill
    ("an exported model", ("model_index.json", "transformer")),
    ("an exported model", ("limner.safetensors",)),
    ("an exported model", ("denoiser.onnx", "draw.py")),
    ("an autoencoder", ("config.json", "diffusion_pytorch_model.safetensors")),
    ("a store of latents or embeddings", ("key.json", "shard-*.safetensors")),
)
"""Kind of folder -> names (or patterns) that are all in it."""


def kind_of_output(folder: Path, names: Collection[str] | None = None) -> str | None:
    """The kind of a folder that Limner wrote, in words ("a training run"); None: another folder.

    Args:
        names: the names in it, if already known.
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
    """The names in a folder, sorted, without hidden and system files (`.DS_Store`, `.gitkeep`,
    `Thumbs.db`): if there are none, it counts as empty. [] if there is no folder."""
    try:
        return sorted(name for name in os.listdir(folder) if not is_system_name(name))
    except FileNotFoundError:
        return []


def foreign_names(
    folder: Path, ours: Collection[str] = (), like: re.Pattern[str] | None = None
) -> list[str]:
    """Names in a folder about to be replaced that would be missed, sorted: hidden or not, but
    neither in `ours` nor files that match `like`. If it is a file, its name."""
    if folder.is_file():
        return [folder.name]
    names = os.listdir(folder) if folder.exists() else ()

    def is_ours(name: str) -> bool:
        return name in ours or bool(like and like.fullmatch(name) and not (folder / name).is_dir())

    return sorted(name for name in names if not is_ours(name) and not is_left_by_itself(name))


def is_training_run(folder: Path) -> bool:
    """Whether a run of Limner wrote this folder. Other programs also write a config.yaml and a
    log.jsonl, so their content is checked."""
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
"""Subfolders that Limner makes in its output folders."""


def output_around(folder: Path) -> tuple[str, Path] | None:
    """(kind, path) of the output of Limner that a folder is, or is a part of, such as the previews
    of a run. A folder that users made inside a run is not a part of it."""
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
