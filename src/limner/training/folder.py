"""The folder of a run: whose it is, and that one process at a time writes into it."""

from __future__ import annotations

from pathlib import Path

from limner.checkpoint.locate import checkpoints
from limner.config import Config, load_config
from limner.errors import LimnerError
from limner.files.atomic import write_text_whole
from limner.files.folder_lock import TRAINING, FolderLock
from limner.files.output_folders import is_training_run, kind_of_output, visible_names

CONFIG = "config.yaml"
OURS = ("refused.jsonl", "problems.jsonl")
"""All that a run leaves which found no data to train on, and a data check that was killed."""
DEEP = 4
"""Levels of folders of runs within folders."""


def run_lock(folder: Path) -> FolderLock:
    """The lock of a run that writes into this folder."""
    return FolderLock(folder, "give this run another training.output_dir", TRAINING)


def check_run_folder(folder: Path) -> None:
    """Raises LimnerError unless a run may write here: there is nothing yet, what is there is an
    earlier run, or (as outputs/demo in outputs/) folders that Limner wrote."""
    if folder.exists() and not folder.is_dir():
        raise LimnerError(f"training.output_dir: {folder} is a file; name a folder")
    if is_training_run(folder) or (folder / TRAINING).exists():
        return
    foreign = [name for name in visible_names(folder) if not _harmless(folder / name)]
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise LimnerError(
            f"training.output_dir: {folder} is no run of Limner's and is not empty (it holds "
            f"{foreign[0]}{more}), so nothing is written there. Name a folder that is empty or "
            f"does not exist yet, such as training.output_dir={(folder / 'run').as_posix()}"
        )


def _harmless(path: Path, level: int = 1) -> bool:
    if path.is_dir():
        return kind_of_output(path) is not None or (
            level < DEEP and all(_harmless(path / n, level + 1) for n in visible_names(path))
        )
    return path.name in OURS or (path.name == CONFIG and _is_as_written(path))


def _is_as_written(path: Path) -> bool:
    """Whether a configuration is word for word what Limner writes: nothing is lost with it."""
    try:
        return load_config(path).to_yaml() == path.read_text(encoding="utf-8")
    except (LimnerError, OSError, ValueError):
        return False


def check_resumed_here(folder: Path, checkpoint: Path) -> None:
    """Raises LimnerError where a run would go on from elsewhere over another one's checkpoints."""
    if checkpoint.resolve().parent == folder.resolve():
        return
    if earlier := checkpoints(folder):
        raise LimnerError(
            f"{checkpoint} is of another run than {earlier[-1]}, over which it would be written: "
            "give this run another training.output_dir, or go on from what is there with "
            "--resume latest"
        )


def write_config(folder: Path, config: Config) -> str | None:
    """Write config.yaml. One with comments is somebody's own: it is kept by another name, and
    where is returned, as a sentence."""
    path, text = folder / CONFIG, config.to_yaml()
    said = keep_edited(path)
    write_text_whole(path, text)
    return said


def keep_edited(path: Path) -> str | None:
    """Copy a configuration that people have commented; what was done, as a sentence."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    if "#" not in text or _is_as_written(path):
        return None
    number, kept = 1, path.with_stem(f"{path.stem}.edited")
    while kept.exists() and kept.read_text(encoding="utf-8", errors="replace") != text:
        number += 1
        kept = path.with_stem(f"{path.stem}.edited-{number}")
    write_text_whole(kept, text)
    return f"{path.name} had comments: it is kept as {kept.name}"
