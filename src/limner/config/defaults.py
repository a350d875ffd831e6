"""Defaults derived from other settings, resolved once before the configuration is used.

The documentation of each such key states its rule; the resolved values are saved with the run.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from limner.config.diffusion import SamplingConfig, SchedulerConfig
from limner.config.model import ModelConfig
from limner.config.training import LrSchedulerConfig

if TYPE_CHECKING:
    from limner.config.schema import Config


DEFAULT_WIDTH: int = ModelConfig.model_fields["hidden_size"].default


def fill_head_sizes(model: Any) -> None:
    """What follows from `attention_head_dim`, where it is given: the width from the heads, or else
    the heads from the width; in the section as read, where only what was given is there."""
    if not isinstance(model, dict) or not isinstance(model.get("attention_head_dim"), int):
        return
    dim, heads = model["attention_head_dim"], model.get("num_heads")
    width = model.get("hidden_size", DEFAULT_WIDTH)
    if heads is None and isinstance(width, int) and dim > 0 and width % dim == 0:
        model["num_heads"] = width // dim
    elif isinstance(heads, int) and "hidden_size" not in model:
        model["hidden_size"] = heads * dim


def resolve(config: Config) -> Config:
    """Choose every value that was left open, by rules that are stated beside each key."""
    model, text, scheduler = config.model, config.text_encoder, config.scheduler
    if scheduler.objective is None:
        classic = scheduler.prediction_type in ("epsilon", "v_prediction") or any(
            v is not None
            for v in (scheduler.beta_start, scheduler.beta_end, scheduler.beta_schedule)
        )
        scheduler = changed(scheduler, objective="diffusion" if classic else "flow_matching")
    flow = scheduler.objective == "flow_matching"
    if scheduler.level_balance is None:
        balance = 0.5 if flow and not model.flow_map else 0.0
        scheduler = changed(scheduler, level_balance=balance)
    if not flow:
        scheduler = changed(
            scheduler,
            beta_start=scheduler.beta_start or 1e-4,
            beta_end=scheduler.beta_end or 0.02,
            beta_schedule=scheduler.beta_schedule or "linear",
        )
    if text.hidden_size is None:
        # As many heads of 64 as fit, so that any width of the model gives a valid encoder.
        text = changed(text, hidden_size=max(64, min(384, model.hidden_size) // 64 * 64))
    if text.pretrained_model_name is None and text.max_length is None:
        text = changed(text, max_length=32)
    training, optimizer = config.training, config.optimizer
    if training.save_steps is None and training.save_every_n_epochs is None:
        training = changed(training, save_steps=1000)
    # Flow maps: docs/distill.md has what was measured.
    by_adamw = config.lora.rank is not None or model.flow_map
    if by_adamw and "type" not in optimizer.model_fields_set:
        optimizer = changed(optimizer, type="adamw")
    if training.learning_rate is None:
        peak = 4e-3 if optimizer.type == "muon" else 1e-3
        if config.lora.rank is not None:  # measured: benchmarks/fine_tuning.py
            peak = 1e-2 * min(1.0, 16 / config.lora.rank) ** 0.5
        elif model.flow_map and optimizer.type == "adamw":
            peak = 2.5e-3  # measured: docs/distill.md
        rate = peak * min(1.0, 256 / model.hidden_size) ** 0.5
        training = changed(training, learning_rate=float(f"{rate:.2g}"))
    if model.flow_map:
        config = changed(
            config,
            sampling=of_few_steps(config.sampling, config.distill.guidance_range),
            lr_scheduler=of_a_short_run(config.lr_scheduler),
        )
    config = config.model_copy(
        update={
            **{"text_encoder": text, "scheduler": scheduler},
            **{"training": training, "optimizer": optimizer},
        }
    )
    if config.vae.pretrained_model_name is None:
        return fit_to_images(config, channels=3, downsampling=1)
    return config


def fit_to_images(config: Config, channels: int, downsampling: int) -> Config:
    """Choose what follows from the pictures or latents that the model sees: how it takes them,
    and what it predicts of them.

    Args:
        channels, downsampling: of the autoencoder's latents; 3 and 1 in pixel space.
    """
    model, scheduler = config.model, config.scheduler
    side = config.data.image_size // downsampling
    in_channels = model.in_channels or channels
    model = changed(
        model,
        patch_size=model.patch_size or max(1, side // 16),
        in_channels=in_channels,
        out_channels=model.out_channels or in_channels,
    )
    if scheduler.prediction_type is None:
        noise = "velocity" if scheduler.objective == "flow_matching" else "epsilon"
        scheduler = changed(scheduler, prediction_type=noise if noise_fits(model) else "sample")
    if scheduler.objective == "flow_matching":
        scheduler = fit_times(scheduler, side)
    return changed(config, model=model, scheduler=scheduler)


def fit_times(scheduler: SchedulerConfig, side: int) -> SchedulerConfig:
    """At which noise to train, for pictures of this many pixels (or latents) a side.

    What is where is seen through more noise in a larger picture, for more pixels say the same: of
    twice the side, twice as much. The times start there (Hoogeboom et al. 2023, arXiv 2301.11093,
    eq. 4; the logit is half of the log signal-to-noise ratio).
    """
    larger = math.log(max(1.0, side / 64))
    start, end = scheduler.logit_mean, scheduler.logit_mean_end
    if end is None:
        end = round(2.0 - 0.6 * larger, 2) if start is None else start
    if start is None:
        start = round(-1.0 - larger, 2)
    return changed(scheduler, logit_mean=start, logit_mean_end=end)


def of_a_short_run(schedule: LrSchedulerConfig) -> LrSchedulerConfig:
    """How the learning rate of a student falls: from nearly the start, since it begins with weights
    that are good already, whose accuracy a high rate costs."""
    usual = {"warmup_steps": 20, "decay_share": 1.0}
    return changed(
        schedule, **{k: v for k, v in usual.items() if k not in schedule.model_fields_set}
    )


def of_few_steps(
    sampling: SamplingConfig, guidance: tuple[float, float] | None = None
) -> SamplingConfig:
    """How a flow map draws, where nothing else is asked for.

    Args:
        guidance: the range of guidance scales that it can draw with; None: it has none.
    """
    scale = 1.0 if guidance is None else sum(guidance) / 2
    usual = {"scheduler_type": "ddim", "num_inference_steps": 2, "guidance_scale": scale}
    return changed(
        sampling, **{k: v for k, v in usual.items() if k not in sampling.model_fields_set}
    )


ROOM_FOR_NOISE = 0.75
"""Numbers of a patch over the width of the model, up to which noise is predicted; above that, the
picture (benchmarks/learning/sizes.py)."""


def patch_numbers(model: ModelConfig) -> int:
    """Numbers of one patch: what one token stands for."""
    return (model.in_channels or 3) * (model.patch_size or 1) ** 2


def noise_floor(config: Config) -> float:
    """The squared error per number, at almost no noise, that a prediction which contains the noise
    has at least: the share of a patch's directions that the width has no room for; 0: none."""
    model = config.model
    if config.scheduler.prediction_type == "sample" or model.flow_map:
        return 0.0
    return max(0.0, 1.0 - model.hidden_size / patch_numbers(model))


def noise_fits(model: ModelConfig) -> bool:
    """Whether the noise of a patch passes through the width of the model with room to spare.

    A velocity, v, or epsilon contains the noise, of which every number is independent of all
    others: what is wider than the model cannot be put out again, and stays in the pictures. A
    picture can: its pixels hang together (JiT, Li & He 2025, arXiv 2511.13720).
    """
    return patch_numbers(model) <= ROOM_FOR_NOISE * model.hidden_size


def changed(section: Any, **values: Any) -> Any:
    return section.model_copy(update=values)
