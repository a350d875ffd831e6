"""Noise: how it is added, and how pictures are drawn out of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from limner.choices import Solver
from limner.config.types import (
    Beta,
    Count,
    NonNegative,
    Number,
    Positive,
    PositiveInt,
    Section,
    Share,
    Whole,
    lower,
)


class SchedulerConfig(Section):
    objective: Literal["flow_matching", "diffusion"] | None = None
    """How noise is added. None: `diffusion` if a beta or a diffusion-only prediction is given,
    else `flow_matching`."""
    num_train_timesteps: Annotated[Whole, Field(ge=2, le=1_000_000)] = 1000
    """The timestep of pure noise; 0 is the clean picture."""
    prediction_type: (
        Annotated[Literal["sample", "epsilon", "v_prediction", "velocity"], BeforeValidator(lower)]
        | None
    ) = None
    """What the network predicts. None: `velocity` (flow matching) or `epsilon` (diffusion), which
    contain the noise, where a patch holds at most 3/4 as many numbers as the model is wide; else
    `sample`, the picture, for noise does not pass through less than its own width."""
    beta_start: Beta | None = None
    """Variance of the noise that the first timestep adds."""
    beta_end: Beta | None = None
    """Variance of the noise that the last timestep adds."""
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] | None = None
    """Of the `diffusion` objective; None: 1e-4 to 0.02, linear (Ho et al. 2020)."""
    logit_mean: Number | None = None
    """Flow matching trains at times with logit(cleanness) ~ N(mean, std): below 0 mostly on noisy
    pictures, where what is where is decided. None: -1 up to 64 pixels (or latents) a side; in
    larger pictures, which are seen through more noise, less by the log of side / 64."""
    logit_mean_end: Number | None = None
    """As the learning rate falls, the mean moves here: first what is where, then fine texture.
    None: 2 up to 64 pixels, 1.58 at 128, 1.17 at 256, or `logit_mean` if that was set."""
    logit_std: Positive = 1.0
    """Spread of these times."""
    uniform_share: Share = 0.1
    """Share of the times drawn uniformly instead, so that no noise level is never trained."""
    level_balance: Share | None = None
    """How far noise levels count by what can be learned there: the loss of each is divided by its
    average to this power. 0: not at all; 1: all levels weigh alike. None: 0.5 in flow matching, 0
    for noise schedules, as published."""


class SamplingConfig(Section):
    scheduler_type: Solver = "dpmsolver++"
    """The solver."""
    num_inference_steps: Annotated[PositiveInt, Field(le=100_000)] = 20
    """Steps of the solver; more are better and slower."""
    guidance_scale: NonNegative = 3.0
    """1: none; 2 to 5 follow the prompt more closely, at the cost of variety."""
    guidance_interval: tuple[Share, Share] = (0.0, 1.0)
    """Noise levels (share of the whole) at which guidance acts."""
    guidance_type: Annotated[Literal["cfg", "cfg_zero_star", "apg"], BeforeValidator(lower)] = "cfg"
    """Classifier-free guidance, or a refinement of it (see diffusion/guidance.py): CFG-Zero* (flow
    matching) scales the prediction to move away from, APG moves across the prediction."""
    guidance_rescale: Share = 0.0
    """How far to draw the contrast of a guided picture back to that of the unguided one."""
    zero_init_steps: Count = 0
    """Of CFG-Zero*, usable with any guidance of flow matching: the first steps stay at the noise,
    where a model is least to be trusted; 1 of 20 in the paper. They cost nothing."""
    apg_eta: Number = 0.0
    """Of `apg`: how much to keep of the guidance along the prediction, which saturates colours."""
    apg_threshold: NonNegative = 0.0
    """Of `apg`: the largest root mean square of a step's guidance, in units of the picture
    (black is -1, white 1) or of the latents; 0: none."""
    apg_momentum: Annotated[Number, Field(gt=-1, lt=1)] = -0.5
    """Of `apg`: the share of earlier steps' guidance that is added; below 0, taken away."""
    shift: Positive = 1.0
    """Above 1: more of the steps at high noise."""
    timestep_power: Positive = 1.0
    """Above 1: more of the steps at both ends, near noise and near the picture; below 1: in the
    middle."""
