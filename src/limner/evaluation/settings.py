"""Settings of an evaluation: those of the checkpoint, with overrides."""

from __future__ import annotations

from collections.abc import Sequence

from limner.config import Config, load_config
from limner.errors import LimnerError

CHANGEABLE = (
    *("evaluation", "sampling", "cache"),
    *("data.dataset_path", "data.memory_mb", "data.check_pictures", "data.refused_limit"),
    *("vae.pretrained_model_name", "vae.use_slicing", "vae.use_tiling"),
    "text_encoder.pretrained_model_name",
)
"""Sections and keys that can be overridden. Changing others would change the held-out split, or the
weights would not fit."""


def evaluation_config(saved: Config, overrides: Sequence[str]) -> Config:
    """The checkpoint's configuration with overrides.

    Args:
        overrides: `section.key=value`.

    Raises:
        LimnerError: naming each key that is invalid or belongs to the training.
    """
    config = load_config(saved.model_dump(mode="json"), overrides)
    fixed = [
        f"{section}.{key}: {there!r} in the checkpoint, {here!r} requested"
        for section in type(saved).model_fields
        for (key, there), (_, here) in zip(
            getattr(saved, section), getattr(config, section), strict=True
        )
        if there != here and section not in CHANGEABLE and f"{section}.{key}" not in CHANGEABLE
    ]
    if fixed:
        raise LimnerError(
            "training settings cannot be changed for an evaluation:\n"
            + "\n".join(f"  - {line}" for line in fixed)
            + "\n"
            "only evaluation.*, sampling.*, cache.*, data.dataset_path, and the paths of vae "
            "and text_encoder can be changed"
        )
    return config
