"""Which settings an evaluation has: the checkpoint's own, with what was asked for changed."""

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
"""Sections and keys. The others say what was trained on what: changed, held-out pictures would be
others than those that were held out, or the weights would not fit."""


def evaluation_config(saved: Config, overrides: Sequence[str]) -> Config:
    """The checkpoint's configuration with overrides.

    Args:
        overrides: `section.key=value`.

    Raises:
        LimnerError: naming each key that is wrong, or that belongs to the training.
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
            "settings of training cannot be changed for an evaluation:\n"
            + "\n".join(f"  - {line}" for line in fixed)
            + "\n"
            "only evaluation.*, sampling.*, cache.*, data.dataset_path, and the paths of vae "
            "and text_encoder can be changed"
        )
    return config
