"""What is compared: recipes as overrides of one base, each with a reason.

The data, the text encoder, the size (within 10 %), the batch, and the processor time are the same.
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
        why: what it is, for the table.
        overrides: of `BASE`, as on the command line.
        minutes: of processor time (all threads together), compilation included.
        marks: minutes at which it is measured besides its end; only a run without a decay of its
            learning rate says something before its end.
        seeds: one run each.
        experiment: the name of a change of code in experiments.py.
        weights: which are measured, `averaged` or `last` or both.
    """

    why: str
    overrides: Sequence[str] = ()
    minutes: float = 10
    marks: Sequence[float] = ()
    seeds: Sequence[int] = (0,)
    experiment: str | None = None
    weights: Sequence[str] = ("averaged",)


def adamw(rate: float, seeds: Sequence[int]) -> Recipe:
    return Recipe(
        f"(b) modern blocks, velocity, logit-normal times, AdamW at {rate:g}, bf16, compiled",
        (*CLASS_CONDITIONAL, f"training.learning_rate={rate}"),
        minutes=30,
        marks=(3, 7.5, 15),
        seeds=seeds,
    )


BASELINES = {
    "published": Recipe(
        "(a) DiT as published: epsilon, 1,000 linear betas, AdamW at 1e-4, EMA 0.9999, fp32",
        PUBLISHED,
        minutes=60,
        marks=(15, 30),
        weights=("averaged", "last"),
    ),
    "class-conditional 3e-4": adamw(3e-4, (0,)),
    "class-conditional 1e-3": adamw(1e-3, (0,)),
    "class-conditional 3e-3": adamw(3e-3, (0,)),
}
DEFAULT = {
    f"default, {minutes:g} min": Recipe("Limner's defaults", minutes=minutes, seeds=(0, 1, 2))
    for minutes in (3, 6, 15)
}


def change(*overrides: str, experiment: str | None = None, minutes: float = 10) -> Recipe:
    """One change of the defaults, for ten minutes."""
    return Recipe("", overrides, minutes, experiment=experiment)


ABLATIONS: dict[str, dict[str, Recipe]] = {
    "": {"default": Recipe("Limner's defaults", seeds=(0, 1, 2))},
    "What is predicted, and at which noise": {
        "predict velocity": change("scheduler.prediction_type=velocity"),
        "velocity, times: mean 0": change(
            "scheduler.prediction_type=velocity", "scheduler.logit_mean=0"
        ),
        "velocity, times: mean -0.6": change(
            "scheduler.prediction_type=velocity", "scheduler.logit_mean=-0.6"
        ),
        **{
            f"preconditioned, times: mean {mean:g}": change(
                "scheduler.prediction_type=velocity",
                f"scheduler.logit_mean={mean}",
                experiment="preconditioned",
            )
            for mean in (-1.2, -0.6, 0)
        },
        "predict noise": change(
            "scheduler.objective=flow_matching", "scheduler.prediction_type=epsilon"
        ),
        "times: mean 0": change("scheduler.logit_mean=0"),
        "times: mean -0.6": change("scheduler.logit_mean=-0.6"),
        "times: mean -1.8": change("scheduler.logit_mean=-1.8"),
        "times: spread 0.7": change("scheduler.logit_std=0.7"),
        "times: spread 1.4": change("scheduler.logit_std=1.4"),
        "times: none uniform": change("scheduler.uniform_share=0"),
        "two noise levels per picture": change(experiment="two_noise_levels"),
        "contrastive": change(experiment="contrastive"),
    },
    "The network": {
        "dit blocks": change(
            "model.architecture=dit", "model.hidden_size=224", "text_encoder.hidden_size=256"
        ),
        "value residual": change(experiment="value_residual"),
        "text as one vector": change(experiment="text_as_vector"),
        "text as tokens only": change(experiment="text_as_tokens"),
        "text encoder of 1 layer": change("text_encoder.num_layers=1"),
        "text encoder of 4 layers": change("text_encoder.num_layers=4"),
        "self-alignment": change(experiment="self_alignment"),
    },
    "The optimizer": {
        "AdamW 1e-3": change("optimizer.type=adamw"),
        "AdamW 3e-3": change("optimizer.type=adamw", "training.learning_rate=3e-3"),
        "schedule-free AdamW 3e-3": change(
            "optimizer.type=adamw",
            "training.learning_rate=3e-3",
            "lr_scheduler.type=constant",
            experiment="schedule_free",
        ),
        "rate 5e-4": change("training.learning_rate=5e-4"),
        "rate 2e-3": change("training.learning_rate=2e-3"),
        "rate 4e-3": change("training.learning_rate=4e-3"),
        "AdamW's part x 3": change(experiment="adamw_rate_3"),
        "AdamW's part / 3": change(experiment="adamw_rate_third"),
        "Muon: 3 iterations": change(experiment="muon_3_iterations"),
        "Muon: Polar Express, 4 iterations": change(experiment="polar_express_4"),
        "Muon: every 2nd step": change(experiment="muon_every_2"),
        "Muon: every 4th step": change(experiment="muon_every_4"),
        "Muon: every 2nd step, 3 iterations": change(experiment="muon_every_2_of_3_iterations"),
        "NorMuon": change(experiment="normuon"),
        "cautious Muon": change(experiment="cautious"),
        "momentum 0.9": change("optimizer.muon_momentum=0.9"),
        "weight decay 0.1": change("optimizer.weight_decay=0.1"),
    },
    "The schedule": {
        "no decay": change("lr_scheduler.type=constant"),
        "decay over 60 %": change("lr_scheduler.decay_share=0.6"),
        "cosine": change("lr_scheduler.type=cosine"),
        "no averaging": change("training.use_ema=false"),
        "averaging over 15 %": change("training.ema_ramp=0.15"),
        "batch 16": change("training.batch_size=16"),
        "batch 64": change("training.batch_size=64"),
        "half the batch at first": change(experiment="small_batches_first"),
    },
    "At 128 pixels (patches of 16)": {
        f"128 pixels, times: mean {mean:g}": change(
            "data.image_size=128", "model.patch_size=16", f"scheduler.logit_mean={mean}"
        )
        for mean in (-0.5, -1.2, -1.9)
    },
    "At 1,024 tokens (patches of 2, width 128)": {
        name: change(
            *("model.patch_size=2", "model.hidden_size=128", "model.num_heads=2"),
            "text_encoder.hidden_size=128",
            experiment=experiment,
            minutes=30,
        )
        for name, experiment in (
            ("1,024 tokens", None),
            ("1,024 tokens, half routed past", "routed"),
        )
    },
    "The data": {
        "first caption only": change("data.main_caption_share=1"),
        "caption dropout 0.2": change("training.caption_dropout=0.2"),
        "dropout 0.1": change("model.dropout=0.1"),
        "non-leaky augmentation": change(experiment="augmented"),
    },
}
