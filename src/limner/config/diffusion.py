"""Settings of the noise schedule, the training objective, and sampling."""

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
    """Training objective. None: `diffusion` if a beta or a diffusion-only prediction type is set,
    otherwise `flow_matching`."""
    num_train_timesteps: Annotated[Whole, Field(ge=2, le=1_000_000)] = 1000
    """The timestep of pure noise; timestep 0 is the clean picture."""
    prediction_type: (
        Annotated[Literal["sample", "epsilon", "v_prediction", "velocity"], BeforeValidator(lower)]
        | None
    ) = None
    """What the network predicts. None: `velocity` (flow matching) or `epsilon` (diffusion) if a
    patch has at most 3/4 as many values as the model is wide; otherwise `sample`, the clean
    picture, because a narrower model cannot reproduce the noise."""
    beta_start: Beta | None = None
    """Noise variance added at the first timestep."""
    beta_end: Beta | None = None
    """Noise variance added at the last timestep."""
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] | None = None
    """Beta schedule of the `diffusion` objective. None: linear from 1e-4 to 0.02 (Ho et al.
    2020)."""
    logit_mean: Number | None = None
    """Flow matching: mean of the logit-normal timestep distribution, logit(1 - noise level) ~
    N(mean, std). Below 0, training favours noisy pictures, where composition is decided. None: -1
    up to 64 pixels (or latents) per side, minus ln(side / 64) above that, because larger pictures
    stay recognisable under more noise."""
    logit_mean_end: Number | None = None
    """The mean moves to this value as the learning rate decays: composition first, fine texture
    later. None: 2 up to 64 pixels, 1.58 at 128, 1.17 at 256, or `logit_mean` if that is set."""
    logit_std: Positive = 1.0
    """Standard deviation of this distribution."""
    uniform_share: Share = 0.1
    """Fraction of timesteps sampled uniformly instead, so that every noise level is trained."""
    level_balance: Share | None = None
    """Loss weighting by noise level: the loss at each level is divided by its running average to
    this power. 0: no weighting; 1: all levels contribute equally. None: 0.5 for flow matching, 0
    for diffusion, as published."""


class SamplingConfig(Section):
    scheduler_type: Solver = "dpmsolver++"
    """Sampler (solver)."""
    num_inference_steps: Annotated[PositiveInt, Field(le=100_000)] = 20
    """Number of denoising steps; more are better and slower."""
    guidance_scale: NonNegative = 3.0
    """Guidance scale. 1: no guidance; 2 to 5 follow the prompt more closely, with less variety."""
    guidance_interval: tuple[Share, Share] = (0.0, 1.0)
    """Range of noise levels, from 0 to 1, in which guidance is applied."""
    guidance_type: Annotated[Literal["cfg", "cfg_zero_star", "apg"], BeforeValidator(lower)] = "cfg"
    """Classifier-free guidance (`cfg`) or a variant (see diffusion/guidance.py): CFG-Zero* (flow
    matching) scales the unconditional prediction, APG keeps the guidance orthogonal to the
    prediction."""
    guidance_rescale: Share = 0.0
    """How far to rescale the standard deviation of the guided prediction to that of the unguided
    one: 0 not at all, 1 fully."""
    zero_init_steps: Count = 0
    """Number of first steps that leave the noise unchanged (from CFG-Zero*, usable with any
    guidance in flow matching), where the model is least reliable; 1 of 20 in the paper. These steps
    cost nothing."""
    apg_eta: Number = 0.0
    """For `apg`: how much of the guidance parallel to the prediction to keep; it saturates
    colours."""
    apg_threshold: NonNegative = 0.0
    """For `apg`: largest root mean square of the guidance in a step, in units of the picture (black
    is -1, white 1) or the latents. 0: no limit."""
    apg_momentum: Annotated[Number, Field(gt=-1, lt=1)] = -0.5
    """For `apg`: momentum of the guidance over steps; negative values subtract earlier guidance."""
    shift: Positive = 1.0
    """Timestep shift. Above 1: more steps at high noise."""
    timestep_power: Positive = 1.0
    """Timestep spacing. Above 1: more steps near both ends (pure noise and the picture); below 1:
    more in the middle."""
