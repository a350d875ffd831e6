"""Storing a setting as the default of a checkpoint, in its `sampling` section."""

from __future__ import annotations

from pathlib import Path

from limner.config import SamplingConfig, load_config
from limner.files.atomic import write_text_whole
from limner.inference.sampling_settings import sampling_settings
from limner.training.folder import keep_edited


def store_sampling(checkpoint: Path, sampling: SamplingConfig) -> str | None:
    """Make `sampling` the default of `limner generate` for this checkpoint.

    Only config.yaml is rewritten, atomically. It is the one file of a checkpoint that users may
    edit, so the manifest has no checksum of it. Resuming is not affected, since training does not
    depend on this section (`resume.UNRELATED`).

    Args:
        checkpoint: the checkpoint folder.

    Returns:
        A sentence about the backup of a configuration with comments, if there is one.

    Raises:
        LimnerError: the setting is invalid for the model.
    """
    path = checkpoint / "config.yaml"
    config = load_config(path)
    fitting = sampling_settings(config, **sampling.model_dump())
    kept = keep_edited(path)
    write_text_whole(path, config.model_copy(update={"sampling": fitting}).to_yaml())
    return kept
