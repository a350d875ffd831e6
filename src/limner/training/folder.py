"""The output folder of a run: whether it may be written to, and its lock."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from limner.checkpoint.locate import checkpoints, step_of
from limner.checkpoint.manifest import NAME
from limner.config import Config, load_config
from limner.errors import LimnerError
from limner.files.atomic import write_text_whole
from limner.files.folder_lock import TRAINING, FolderLock
from limner.files.output_folders import is_training_run, kind_of_output, visible_names

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
CHOSEN, CHOSEN_BEFORE = "train.yaml", "train-before.yaml"
"""The settings that `limner train FOLDER` chose for a run, and earlier ones that were not used."""
OURS = ("refused.jsonl", "problems.jsonl", CHOSEN, CHOSEN_BEFORE)
"""All that is left by a run that found no usable data, by a data check that was killed, and by a
run that has only been chosen."""
SET_ASIDE = "set-aside"
"""Where a run that resumes from an earlier step puts what it had saved after that step."""
DEEP = 4
"""How many levels deep folders of runs may be nested."""


def run_lock(folder: Path) -> FolderLock:
    """The lock of a run that writes into this folder."""
    return FolderLock(folder, "set another training.output_dir", TRAINING)


def check_run_folder(folder: Path) -> None:
    """Raises LimnerError unless a run may write here: the folder is missing or empty, is an earlier
    run, or holds only folders that Limner wrote (such as outputs/demo in outputs/)."""
    if folder.exists() and not folder.is_dir():
        raise LimnerError(f"training.output_dir: {folder} is a file; use a folder")
    if is_training_run(folder) or (folder / TRAINING).exists():
        return
    foreign = [name for name in visible_names(folder) if not _harmless(folder / name)]
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise LimnerError(
            f"training.output_dir: {folder} is not empty and is not a Limner run (it contains "
            f"{foreign[0]}{more}). Use an empty or new folder, such as "
            f"training.output_dir={(folder / 'run').as_posix()}"
        )


def _harmless(path: Path, level: int = 1) -> bool:
    if path.is_dir():
        return kind_of_output(path) is not None or (
            level < DEEP and all(_harmless(path / n, level + 1) for n in visible_names(path))
        )
    return path.name in OURS or (path.name == CONFIG and _is_as_written(path))


def _is_as_written(path: Path) -> bool:
    """Whether a configuration is exactly what Limner writes, so that nothing is lost if it is
    replaced."""
    try:
        return load_config(path).to_yaml() == path.read_text(encoding="utf-8")
    except (LimnerError, OSError, ValueError):
        return False


def check_resumed_here(folder: Path, checkpoint: Path) -> None:
    """Raises LimnerError if a run resumed from elsewhere would overwrite another run's
    checkpoints."""
    if checkpoint.resolve().parent == folder.resolve():
        return
    if earlier := checkpoints(folder):
        raise LimnerError(
            f"{checkpoint} belongs to another run than {earlier[-1]}, which it would overwrite; "
            "set another training.output_dir, or resume what is there with --resume latest"
        )


def set_aside_later(folder: Path, step: int) -> None:
    """Move checkpoints and previews of later steps than the one a run resumes from into a new
    folder `set-aside`, and log it.

    They are damaged, or from a course that the run no longer takes. By their numbers they would
    count as newer than whatever is written from here on, and pruning would delete that instead.

    Raises:
        LimnerError: they cannot be moved.
    """
    later = [p for p in folder.glob("checkpoint-*") if NAME.fullmatch(p.name) and step_of(p) > step]
    if not later:
        return
    later.sort(key=step_of, reverse=True)  # a kill leaves the older ones, a complete run
    previews = [
        path
        for path in folder.glob("previews/step-*.png")
        if (digits := path.stem.removeprefix("step-")).isdecimal() and int(digits) > step
    ]
    number, place = 1, folder / SET_ASIDE
    while place.exists():
        number += 1
        place = folder / f"{SET_ASIDE}-{number}"
    try:
        for path in [*later, *previews]:
            moved = place / path.relative_to(folder)
            moved.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, moved)
    except OSError as error:
        raise LimnerError(
            f"{error.filename} is later than step {step}, from which this run resumes, and could "
            f"not be moved to {place} ({error.strerror}); close the program that uses it and run "
            "the same command again"
        ) from None
    names = ", ".join(path.name for path in reversed(later))
    log.info(
        f"resuming from step {step}; later files ({names}) were moved to {place}, which no run "
        "deletes"
    )


def write_config(folder: Path, config: Config) -> None:
    """Write config.yaml. An existing one with comments was edited by hand: it is kept under another
    name, and that is logged."""
    path, text = folder / CONFIG, config.to_yaml()
    if kept := keep_edited(path):
        log.info(kept)
    write_text_whole(path, text)


def keep_edited(path: Path) -> str | None:
    """Copy a configuration that contains comments. Returns a sentence that says so, or None."""
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
    return f"{path.name} contained comments; a copy is kept as {kept.name}"
