"""A setting becomes the default of a checkpoint: its `sampling` section is written anew."""

from __future__ import annotations

from pathlib import Path

from limner.config import SamplingConfig, load_config
from limner.files.atomic import write_text_whole
from limner.inference.sampling_settings import sampling_settings
from limner.training.folder import keep_edited


def store_sampling(checkpoint: Path, sampling: SamplingConfig) -> str | None:
    """Make `sampling` what `limner generate` draws with where nothing else is asked for.

    Only config.yaml changes, whole or not at all. It is the one file of a checkpoint that people
    may edit, so the manifest has no checksum of it to be kept; and a run that resumes from here is
    the same run, for training does not depend on this section (`resume.UNRELATED`).

    Args:
        checkpoint: the checkpoint's own folder.

    Returns:
        Where a configuration with somebody's comments is kept, as a sentence.

    Raises:
        LimnerError: the setting does not fit the model.
    """
    path = checkpoint / "config.yaml"
    config = load_config(path)
    fitting = sampling_settings(config, **sampling.model_dump())
    kept = keep_edited(path)
    write_text_whole(path, config.model_copy(update={"sampling": fitting}).to_yaml())
    return kept
