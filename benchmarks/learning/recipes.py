"""The recipes that are compared, as overrides of one base configuration.

All share the data, the text encoder, the model size (within 10%), the batch size, and the CPU time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BASE: dict[str, Any] = {
    "data": {"dataset_name": "emoji", "subset": "demo", "image_size": 64},
    "model": {"patch_size": 8, "hidden_size": 256, "num_layers": 6, "num_heads": 4},
    "text_encoder": {"max_length": 16},
    "training": {
        "device": "cpu",
        "batch_size": 32,
        "num_workers": 0,
        "save_steps": 500,
        "checkpoints_total_limit": 1,
        "heldout_steps": 100_000,
        "preview_steps": 100_000,
        "trackers": ["none"],
    },
    "sampling": {"num_inference_steps": 10, "guidance_scale": 2.0},
}
"""335 emoji with English and Chinese names, 39 of them held out; 64 tokens; about 8M parameters."""

PUBLISHED = (
    "model.architecture=dit",
    "model.hidden_size=224",  # its blocks have a modulation each: this width has our size
    "text_encoder.hidden_size=256",
    "scheduler.prediction_type=epsilon",
    "optimizer.type=adamw",
    "optimizer.betas=[0.9, 0.999]",
    "training.learning_rate=1e-4",
    "lr_scheduler.type=constant",
    "lr_scheduler.warmup_steps=0",
    "training.max_grad_norm=1e9",
    "training.ema_decay=0.9999",
    "training.ema_ramp=1e9",
    "training.mixed_precision=no",
    "training.compile_model=false",
    "sampling.num_inference_steps=20",
)
CLASS_CONDITIONAL = (
    "scheduler.prediction_type=velocity",
    "scheduler.level_balance=0",
    "scheduler.logit_mean=0",
    "scheduler.uniform_share=0",
    "optimizer.type=adamw",
    "optimizer.betas=[0.9, 0.95]",
    "lr_scheduler.type=constant",
)


@dataclass(frozen=True)
class Recipe:
    """One line of the table.

    Args:
        why: a short description.
        overrides: applied to `BASE`, as on the command line.
        minutes: CPU time (all threads together), including compilation.
        marks: minutes at which it is also measured before its end; this is only meaningful without
            learning rate decay.
        seeds: one run for each.
        experiment: names of functions in experiments.py, separated by spaces.
        weights: which weights are measured: `averaged` (EMA), `last`, or both.
    """

    why: str
    overrides: Sequence[str] = ()
    minutes: float = 10
    marks: Sequence[float] = ()
    seeds: Sequence[int] = (0,)
    experiment: str | None = None
    weights: Sequence[str] = ("averaged",)


def adamw(rate: float, seeds: Sequence[int], minutes: float) -> Recipe:
    return Recipe(
        f"(b) modern blocks, velocity, logit-normal times, AdamW at {rate:g}, bf16, compiled",
        (*CLASS_CONDITIONAL, f"training.learning_rate={rate}"),
        minutes=minutes,
        marks=[mark for mark in (3, 7.5, 15) if mark < minutes],
        seeds=seeds,
        experiment="independent_times",
    )


BASELINES = {
    "published": Recipe(
        "(a) DiT as published: epsilon, 1,000 linear betas, AdamW at 1e-4, EMA 0.9999, fp32",
        PUBLISHED,
        minutes=60,
        marks=(15, 30),
        weights=("averaged", "last"),
        experiment="independent_times",
    ),
    # The rate is constant, so that after half of the time it is clear which of the three is best.
    "class-conditional 3e-4": adamw(3e-4, (0,), 15),
    "class-conditional 1e-3": adamw(1e-3, (0, 1, 2), 30),
    "class-conditional 3e-3": adamw(3e-3, (0,), 15),
}
DEFAULT = {
    f"default, {minutes:g} min": Recipe("Limner's defaults", minutes=minutes, seeds=(0, 1, 2))
    for minutes in (3, 6, 15)
}
