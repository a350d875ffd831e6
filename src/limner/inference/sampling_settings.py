"""Sampling settings: apply and check overrides, count network evaluations, describe settings."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import ValidationError

from limner.config import Config, SamplingConfig, known_keys
from limner.config.checks import sampling_problems
from limner.config.messages import explain, sentence
from limner.diffusion.guidance import is_guided
from limner.diffusion.noise_schedule import NoiseSchedule
from limner.diffusion.solvers import SOLVERS
from limner.errors import LimnerError
from limner.messages import plural


def sampling_settings(config: Config, **changes: Any) -> SamplingConfig:
    """The sampling settings of a configuration, with those changes that are not None.

    Args:
        changes: keys of the `sampling` section.

    Raises:
        LimnerError: names each key that is unknown, out of range, or does not fit the others or the
            model.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    if str(given.get("scheduler_type", "ddim")).lower() not in SOLVERS:
        raise LimnerError(
            f"scheduler_type {given['scheduler_type']!r} is not known; use one of "
            f"{', '.join(SOLVERS)}"
        )
    if given.get("num_inference_steps", 1) < 1:
        raise LimnerError(
            f"num_inference_steps is {given['num_inference_steps']}; it must be at least 1"
        )
    if not given.get("guidance_scale", 1) >= 0:
        raise LimnerError(f"guidance_scale is {given['guidance_scale']}; it must be 0 or more")
    try:
        sampling = SamplingConfig.model_validate({**config.sampling.model_dump(), **given})
    except ValidationError as error:
        keys = [key for key in known_keys() if key.startswith("sampling.")]
        found = [sentence({**e, "loc": ("sampling", *e["loc"])}, keys, []) for e in error.errors()]
        raise LimnerError(explain("what was asked for", found)) from None
    if found := list(sampling_problems(config.model_copy(update={"sampling": sampling}))):
        raise LimnerError(explain("what was asked for", found))
    return sampling


def inference_timesteps(
    sampling: SamplingConfig, noise_schedule: NoiseSchedule, strength: float = 1.0
) -> torch.Tensor:
    """The timesteps of the solver: see `noise_schedule.inference_timesteps`.

    The first `zero_init_steps` have a velocity of zero in CFG-Zero* (Fan et al. 2025, arXiv
    2503.18886), so x stays pure noise until the time after them, and the solver starts there.
    Image-to-image has no such steps.
    """
    steps, shift, power = sampling.num_inference_steps, sampling.shift, sampling.timestep_power
    times = noise_schedule.inference_timesteps(steps, shift, power, strength)
    return times[sampling.zero_init_steps :] if strength == 1 else times


def function_evaluations(
    sampling: SamplingConfig,
    noise_schedule: NoiseSchedule,
    strength: float = 1.0,
    distilled: bool = False,
) -> int:
    """How often the network is evaluated for one picture; a guided step counts twice, but not of a
    distilled model.

    Counted by running the solver with a dummy network.

    Args:
        strength: below 1 for image-to-image (see `variations.InitImage`).
        distilled: the model is a flow map, which knows what guidance does.
    """
    count = 0

    def denoise(x: torch.Tensor, timestep: float) -> torch.Tensor:
        nonlocal count
        count += 2 if not distilled and is_guided(timestep, sampling, noise_schedule) else 1
        return x

    x = torch.zeros(1, 1, 1, 1)
    times = inference_timesteps(sampling, noise_schedule, strength)
    SOLVERS[sampling.scheduler_type](denoise, x, times, noise_schedule, lambda _: x)
    return count


def in_words(sampling: SamplingConfig) -> str:
    """A short description of the settings, such as "unipc, 9 steps, guidance 3 in 0.3-1, shift
    1.5"."""
    steps = sampling.num_inference_steps
    words = [sampling.scheduler_type, f"{steps} {plural(steps, 'step')}"]
    if sampling.guidance_scale == 1:
        words.append("no guidance")
    else:
        low, high = sampling.guidance_interval
        within = "" if (low, high) == (0, 1) else f" in {low:g}-{high:g}"
        kind = "" if sampling.guidance_type == "cfg" else f" ({sampling.guidance_type})"
        words.append(f"guidance {sampling.guidance_scale:g}{kind}{within}")
    for key, name in (("shift", "shift"), ("timestep_power", "power")):
        if (value := getattr(sampling, key)) != 1:
            words.append(f"{name} {value:g}")
    if sampling.zero_init_steps:
        words.append(f"{(n := sampling.zero_init_steps)} zero {plural(n, 'step')}")
    if sampling.guidance_rescale:
        words.append(f"rescale {sampling.guidance_rescale:g}")
    return ", ".join(words)
