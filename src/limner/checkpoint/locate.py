"""Find the checkpoints of a run, and the newest that is intact."""

from __future__ import annotations

import logging
from pathlib import Path

from limner.checkpoint.lineage import FILE as LINEAGE
from limner.checkpoint.manifest import MANIFEST, NAME, damage
from limner.checkpoint.sharded import INDEX
from limner.checkpoint.state import TrainingState
from limner.config import load_config
from limner.errors import LimnerError
from limner.text.tokenizer import CaptionTokenizer

FILES = ("model.pt", "optimizer.pt", "training_state.json", "config.yaml", MANIFEST)


TOKENIZER = "tokenizer.json"


AVERAGED = "ema.safetensors"


ROWS = "rows.npy"


WORDS = "words.json"


TEXTS = ("training_state.json", TOKENIZER, LINEAGE, INDEX)
"""Small files that are read whenever a checkpoint is opened, and verified then."""


LORA, ADAPTER = "lora.safetensors", "adapter"


PLAIN_FILES = (*FILES, AVERAGED, TOKENIZER, WORDS, ROWS, LINEAGE)
"""What a checkpoint of a model without adapters or shards holds."""


log = logging.getLogger(__name__)


def needed(folder: Path) -> tuple[str, ...]:
    """The files that a finished checkpoint must have."""
    if not (folder / INDEX).is_file():
        return FILES
    return (*FILES[2:], INDEX)


def checkpoints(run_folder: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    return [p for p in _numbered(run_folder) if all((p / n).is_file() for n in needed(p))]


def _numbered(run_folder: Path) -> list[Path]:
    if not run_folder.is_dir():
        return []
    named = [(NAME.fullmatch(p.name), p) for p in run_folder.iterdir() if p.is_dir()]
    return [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]


def newest_good(
    run_folder: Path, names: tuple[str, ...] | None = None, before: int | None = None
) -> tuple[Path | None, list[str]]:
    """The newest intact checkpoint of a run, and why newer ones were skipped.

    Args:
        names: files whose checksums are verified; None: all (see `damage`).
        before: consider only checkpoints before this step.
    """
    passed_over: list[str] = []
    for path in reversed(_numbered(run_folder)):
        if before is not None and step_of(path) >= before:
            continue
        missing = [name for name in needed(path) if not (path / name).is_file()]
        problem = f"{', '.join(missing)} missing" if missing else damage(path, names)
        problem = problem or _why_not_opened(path)
        if problem is None:
            return path, passed_over
        passed_over.append(f"skipped {path.name}: {problem}")
    return None, passed_over


def step_of(checkpoint: Path) -> int:
    """The step in the name of a run's checkpoint."""
    return int(checkpoint.name.partition("-")[2])


def _why_not_opened(path: Path) -> str | None:
    """Why a checkpoint whose checksums match cannot be opened (its tensors aside); None: it can."""
    try:
        load_config(path / "config.yaml")
        TrainingState.read(path / "training_state.json")
        if (path / TOKENIZER).is_file():
            CaptionTokenizer.load(path / TOKENIZER, 1)
    except LimnerError as error:
        return " ".join(str(error).split())[:300]
    return None


def newest_checkpoint(run_folder: Path) -> Path:
    """The checkpoint of `--resume latest`. Raises LimnerError."""
    found, passed_over = newest_good(run_folder)
    for sentence in passed_over:
        log.warning("%s", sentence)
    if found is None:
        reasons = "".join(f"\n  - {sentence}" for sentence in passed_over)
        raise LimnerError(
            f"--resume latest: no checkpoint in {run_folder.absolute()}; start without --resume, "
            f"or set training.output_dir to the folder of the run{reasons}"
        )
    return found


def find_checkpoint(path: str | Path) -> Path:
    """A checkpoint folder as given, or the newest good one of a run folder. Raises LimnerError."""
    folder = Path(path).expanduser()
    if folder.is_file() and folder.name in (*FILES, AVERAGED, INDEX):
        folder = folder.parent
    if not folder.is_dir():
        raise LimnerError(
            f"no checkpoint at {folder.absolute()}; use a run folder (outputs/demo) or one of its "
            "checkpoint-<step> folders"
        )
    if not (folder / "training_state.json").is_file():
        found, passed_over = newest_good(folder, (AVERAGED, "model.pt", *TEXTS))
        for sentence in passed_over:
            log.warning("%s", sentence)
        if found is not None:
            return found
        if passed_over:
            raise LimnerError(
                f"{folder} has no usable checkpoint:\n  - " + "\n  - ".join(passed_over)
            )
    if missing := [name for name in needed(folder) if not (folder / name).is_file()]:
        hint = ""
        if runs := sorted(path.parent for path in folder.glob("*/checkpoint-*") if path.is_dir()):
            hint = f"; it contains runs, such as {runs[0]}"
        elif (folder / "model_index.json").is_file():
            hint = "; it is a diffusers folder, see DiffusionPipeline.from_pretrained"
        raise LimnerError(
            f"{folder} is not a complete checkpoint: {', '.join(missing)} missing{hint}"
        )
    return folder
