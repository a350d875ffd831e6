"""Learning rate and EMA decay as functions of the step."""

from __future__ import annotations

import math

from limner.config import LrSchedulerConfig, TrainingConfig


def learning_rate_share(
    settings: LrSchedulerConfig, step: int, total_steps: int | None, decay_start: int | None
) -> float:
    """The learning rate of update `step` (counted from 0) over its peak, 0 to 1.

    Args:
        total_steps: updates in the whole run; None while a run bounded by minutes has not fixed it.
        decay_start: the first update of `wsd`'s decay; None as `total_steps`.
    """
    rise = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    return rise * (1.0 - decay_progress(settings, step, total_steps, decay_start))


def decay_progress(
    settings: LrSchedulerConfig, step: int, total_steps: int | None, decay_start: int | None
) -> float:
    """How far the learning rate has come down from its peak, 0 to 1. In a run too short for both,
    warm-up and decay overlap."""
    if total_steps is None or settings.type == "constant":
        return 0.0
    if settings.type == "wsd":
        if decay_start is None or step < decay_start:
            return 0.0
        return min(1.0, (step - decay_start) / max(1, total_steps - decay_start))
    done = (step - settings.warmup_steps) / max(1, total_steps - settings.warmup_steps)
    done = min(1.0, max(0.0, done))
    return done if settings.type == "linear" else 0.5 * (1 - math.cos(math.pi * done))


def checkpoint_due(
    settings: TrainingConfig, step: int, images: int, images_per_step: int, rows: int
) -> bool:
    """Whether `save_steps` or `save_every_n_epochs` wants a checkpoint after update `step`.

    Args:
        images: pictures seen so far, those of this update included.
        images_per_step: pictures of an update.
        rows: pictures of an epoch, which ends within the update that takes its last one.
    """
    if settings.save_steps is not None and step % settings.save_steps == 0:
        return True
    if settings.save_every_n_epochs is None:
        return False
    pictures = settings.save_every_n_epochs * rows
    return images // pictures > (images - images_per_step) // pictures


def ema_decay(images: int, batch_size: int, longest: float, ramp: float) -> float:
    """The weight of the old average at an update after `images` pictures.

    Its half-life grows with the run, up to `ramp` of the pictures seen (EDM, Karras et al. 2022,
    `ema_rampup_ratio`), until the decay per update reaches `longest`: so a short run is not
    averaged with its early weights.
    """
    half_life = max(images * ramp, 1e-8)
    return min(longest, 0.5 ** (batch_size / half_life))
