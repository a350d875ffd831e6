"""Find the checkpoint that a run resumes from, and check that it belongs to the same run."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.inherit import load_run_config
from limner.checkpoint.locate import checkpoints, find_checkpoint, newest_checkpoint, newest_good
from limner.checkpoint.matching import check_same_model
from limner.config import Config, load_config
from limner.data.row_fingerprints import compare
from limner.errors import LimnerError
from limner.redaction import is_same_place
from limner.training.folder import check_resumed_here

log = logging.getLogger(__name__)

SAME_RUN = {
    "data": ("memory_mb", "check_pictures", "refused_limit"),
    "training": (
        *("output_dir", "device", "batch_size", "gradient_accumulation_steps"),
        *("effective_batch_size", "resume", "save_steps", "checkpoints_total_limit"),
        *(
            "keep_best",
            "save_errors",
            "logging_steps",
            "heldout_steps",
            "heldout_pictures",
            "preview_steps",
        ),
        *("preview_prompts", "num_workers", "prefetch_factor", "gradient_checkpointing"),
        *("compile_model", "trackers", "sharding", "checkpoint_shards", "process_timeout"),
        *("tracker_project", "run_name", "save_every_n_epochs"),
    ),
    "vae": ("pretrained_model_name", "use_slicing", "use_tiling"),
    "text_encoder": ("pretrained_model_name",),
    "distill": ("fingerprint",),
}
"""Keys that may change within a run, because what is learned does not depend on them (fingerprints
tell whether pretrained parts are the same)."""
UNRELATED = ("sampling", "cache", "autoencoder", "evaluation")
"""Sections that training does not depend on."""


def find_resume(resume: str | Path | None, config: Config) -> Checkpoint | None:
    """The checkpoint to resume from; None: start anew.

    Args:
        resume: a checkpoint folder, "latest", "auto", "no", or None: what the configuration says.
        config: complete; its output_dir is searched.

    Raises:
        LimnerError: it is missing, damaged, of another model, or of another run.
    """
    folder = Path(config.training.output_dir)
    wanted = str(config.training.resume if resume is None else resume)
    if wanted == "no":
        if earlier := checkpoints(folder):
            # Two runs in one folder: the newest would be whichever went on for longer.
            raise LimnerError(
                f"{earlier[-1]} belongs to an earlier run; resume it with --resume latest, or set "
                "another training.output_dir"
            )
        return None
    if wanted not in ("auto", "latest"):
        named = find_checkpoint(wanted)
        check_resumed_here(folder, named)
        return _opened(named, config)
    found, passed_over = newest_good(folder)
    if found is None:
        if wanted == "latest" or passed_over:
            newest_checkpoint(folder)  # raises, with all reasons
        return None
    checkpoint = _opened(found, config, auto=wanted == "auto")
    for sentence in passed_over:
        log.info(sentence)
    return checkpoint


def check_rows(checkpoint: Checkpoint, rows: np.ndarray, auto: bool) -> None:
    """Log if the training rows differ from those the checkpoint was trained on.

    Args:
        rows: fingerprints of the current training rows (`limner.data.row_fingerprints`).
        auto: whether the checkpoint was found automatically, not asked for.

    Raises:
        LimnerError: they differ, and the checkpoint was found automatically.
    """
    before, name = checkpoint.rows(), checkpoint.folder.name
    if before is None:
        log.info(
            f"{name} was saved by an earlier version and does not record its training pictures, so "
            "they cannot be compared"
        )
        return
    if (changes := compare(before, rows)) is None:
        return
    if auto:
        raise LimnerError(
            f"the data changed since {checkpoint.folder} was saved ({changes}); set another "
            "training.output_dir, or resume with the current data: --resume latest"
        )
    log.info(
        f"the data changed since {name} was saved ({changes}); resuming with the current data, so "
        "this is no longer the same run"
    )


def _opened(folder: Path, config: Config, auto: bool = False) -> Checkpoint:
    checkpoint = Checkpoint.open(folder)
    if auto and (different := differences(checkpoint.config, config)):
        raise LimnerError(
            f"{folder} belongs to an earlier run with other settings:\n"
            + "\n".join(f"  - {d}" for d in different)
            + "\nset another training.output_dir"
            + (
                ", or resume with these settings: --resume latest"
                if _is_same_model(checkpoint.config, config)
                else " (this run has another model, so it cannot resume from there)"
            )
        )
    check_same_model(checkpoint.config, config)
    return checkpoint


def _is_same_model(saved: Config, asked: Config) -> bool:
    try:
        check_same_model(saved, asked)
    except LimnerError:
        return False
    return True


def differences(saved: Config, asked: Config) -> list[str]:
    """Describe the differences that make two configurations different runs."""
    return [
        f"{section}.{key}: {there!r} in the checkpoint, {here!r} in this run"
        for section in type(saved).model_fields
        if section not in UNRELATED
        for (key, there), (_, here) in zip(
            getattr(saved, section), getattr(asked, section), strict=True
        )
        if there != here
        and not (key == "init_from" and is_same_place(there, here))
        and key not in SAME_RUN.get(section, ())
        and not (key == "buckets" and here == "auto")  # the checkpoint has the sizes that it found
    ]


def resume_config(
    resume: str | Path | None, config_file: Path | None, overrides: Sequence[str]
) -> Config | None:
    """The configuration to resume with if none is given: the checkpoint's own, with overrides.

    Raises:
        LimnerError: it is missing, or it is not where its configuration says and no output folder
            is given.
    """
    if resume in (None, "auto", "no") or config_file is not None:
        return None
    if str(resume) == "latest":
        run = Path(load_config(None, overrides).training.output_dir)
        # Where the run is now, not where it began: it may have been moved.
        overrides = [*overrides, f"training.output_dir={json.dumps(str(run), ensure_ascii=False)}"]
        return load_run_config(newest_checkpoint(run) / "config.yaml", overrides)
    folder = find_checkpoint(str(resume))
    config = load_run_config(folder / "config.yaml", overrides)
    said = any(word.partition("=")[0] == "training.output_dir" for word in overrides)
    if not said and folder.resolve().parent != Path(config.training.output_dir).resolve():
        raise LimnerError(
            f"--resume {resume}: it was written by a run in {config.training.output_dir}, but has "
            "been moved since. Set the output folder of this run: "
            f"training.output_dir={folder.parent.as_posix()} to continue there, or a new folder"
        )
    return config
