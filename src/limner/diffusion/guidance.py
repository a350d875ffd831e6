"""Guidance: combines two predictions into the denoiser that solvers call.

The two are predictions for two texts (classifier-free guidance), or of the model and of a weaker
model (autoguidance). The guidance type says how they are combined.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from limner.diffusion.noise_schedule import NoiseSchedule
from limner.diffusion.objective import Objective
from limner.diffusion.solvers import Denoiser
from limner.text.conditioning import TextConditioning

Combine = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_t, x_0 as asked for, x_0 to move away from) -> x_0, each float32 [B, C, H, W]."""


class GuidanceSettings(Protocol):
    """What guidance reads of the `sampling` section of a configuration, which says what each is.

    An exported pipeline has these and no configuration.
    """

    guidance_scale: float
    guidance_interval: tuple[float, float]
    guidance_type: Literal["cfg", "cfg_zero_star", "apg"]
    guidance_rescale: float
    apg_eta: float
    apg_threshold: float
    apg_momentum: float


def guided_denoiser(
    model: Callable[[Tensor, Tensor, TextConditioning], Tensor],
    objective: Objective,
    text: TextConditioning,
    null_text: TextConditioning,
    sampling: GuidanceSettings,
    dtype: torch.dtype,
    guide: Denoiser | None = None,
    scales: Tensor | None = None,
) -> Denoiser:
    """The denoiser with classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598), or with
    autoguidance by a weaker model (Karras et al. 2024, arXiv 2406.02507).

    Both texts go through the network in one batch.

    Args:
        model: `model(x, t, y)`, x [B, C, H, W] float32, t [B] float32 timesteps, y B texts; returns
            the prediction, with the shape of x.
        text: the prompts, B texts.
        null_text: the empty or negative prompt: 1 or B texts, padded to the length of `text`.
            Unused with a guide.
        sampling: guidance type, its parameters, and the interval.
        dtype: autocast dtype of the network; float32 disables autocast.
        guide: denoiser of the weaker model, to guide away from instead.
        scales: of each picture, [B], instead of the one guidance scale of `sampling`.

    Returns:
        denoise(x [B, C, H, W], timestep) -> x_0, float32 [B, C, H, W].
    """
    combine = combination(sampling, scales)
    both_texts = text.followed_by(null_text)

    def predict_x0(x: Tensor, timestep: float, y: TextConditioning) -> Tensor:
        t = torch.full((x.shape[0],), timestep, dtype=torch.float32, device=x.device)
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            output = model(x, t, y)
        return objective.to_x0(output, x, t)

    def denoise(x: Tensor, timestep: float) -> Tensor:
        if not is_guided(timestep, sampling, objective.noise_schedule, scales):
            return predict_x0(x, timestep, text)
        if guide is not None:
            return combine(x, predict_x0(x, timestep, text), guide(x, timestep))
        x0, null_x0 = predict_x0(torch.cat([x, x]), timestep, both_texts).chunk(2)
        return combine(x, x0, null_x0)

    return denoise


def is_guided(
    timestep: float,
    sampling: GuidanceSettings,
    noise_schedule: NoiseSchedule,
    scales: Tensor | None = None,
) -> bool:
    """Whether guidance applies at this timestep, which needs two predictions.

    Outside of an interval of noise levels guidance does little good (Kynkäänniemi et al. 2024,
    arXiv 2404.07724), and the network is spared half its work, as it is where the scale is 1.
    """
    low, high = (share * noise_schedule.num_train_timesteps for share in sampling.guidance_interval)
    return (scales is not None or sampling.guidance_scale != 1) and low <= timestep <= high


def combination(sampling: GuidanceSettings, scales: Tensor | None = None) -> Combine:
    """The function that combines two predictions. It may be stateful: create a new one per
    batch.

    Args:
        scales: of each picture, [B], instead of the one guidance scale of `sampling`.
    """
    scale = sampling.guidance_scale if scales is None else scales.reshape(-1, 1, 1, 1)
    rescale = sampling.guidance_rescale
    combine: Combine
    if sampling.guidance_type == "cfg_zero_star":
        combine = zero_star(scale)
    elif sampling.guidance_type == "apg":
        combine = adaptive_projected(
            scale, sampling.apg_eta, sampling.apg_threshold, sampling.apg_momentum
        )
    else:
        combine = classifier_free(scale)
    if not rescale:
        return combine
    return lambda x, x0, null_x0: rescaled(combine(x, x0, null_x0), x0, rescale)


def classifier_free(scale: float | Tensor) -> Combine:
    """x_0 = x_0(null) + scale * (x_0(text) - x_0(null)).

    Ho & Salimans 2022, equation 6 (their w is scale - 1), has the noise predictions there, and
    Karras et al. 2024, equation 3, the denoised pictures. x_0 is affine in every kind of prediction
    and the two weights add up to 1, so the picture is the same.
    """
    return lambda x, x0, null_x0: null_x0 + scale * (x0 - null_x0)


def zero_star(scale: float | Tensor) -> Combine:
    """CFG-Zero* (Fan et al. 2025, arXiv 2503.18886): scales the unconditional prediction optimally.

    With velocities v = v(text) and u = v(null): s u + scale * (v - s u), where
    s = <v, u> / |u|^2 makes s u the nearest to v of all multiples of u. On the flow path
    v = (x_t - x_0) / sigma, and sigma falls out of s and of the result, so differences from x_t
    stand here for velocities. The paper's second part is `sampling.zero_init_steps`.
    """

    def combine(x: Tensor, x0: Tensor, null_x0: Tensor) -> Tensor:
        v, u = x - x0, x - null_x0
        u = u * (dot(v, u) / dot(u, u).clamp(min=1e-12))
        return x - (u + scale * (v - u))

    return combine


def adaptive_projected(
    scale: float | Tensor, eta: float, threshold: float, momentum: float
) -> Combine:
    """Adaptive projected guidance (Sadat et al. 2024, arXiv 2410.02416, algorithm 1), on x_0.

    The difference of the two predictions (with a share of those of earlier steps, its length
    limited) is split along the prediction and across it. What lies along it makes colours too
    strong; `eta` of it is kept.

    Args:
        threshold: the largest root mean square of the difference, which is the paper's r over the
            square root of the number of values, so that it means the same at any size; 0: none.
        momentum: of the running sum of differences; below 0 it pushes away from earlier ones.
    """
    running: list[Tensor] = []

    def combine(x: Tensor, x0: Tensor, null_x0: Tensor) -> Tensor:
        difference = x0 - null_x0
        if momentum:
            if running:
                difference = difference + momentum * running.pop()
            running.append(difference)
        if threshold:
            length = (dot(difference, difference) / x0[0].numel()).sqrt()
            difference = difference * (threshold / length.clamp(min=1e-12)).clamp(max=1)
        along = x0 * (dot(difference, x0) / dot(x0, x0).clamp(min=1e-12))
        return x0 + (scale - 1) * (difference - along + eta * along)

    return combine


def rescaled(guided: Tensor, x0: Tensor, share: float) -> Tensor:
    """Rescale the standard deviation of the guided prediction towards that of the unguided one.

    Lin et al. 2023 (arXiv 2305.08891, equations 15 and 16). Theirs scales the network's output
    about 0; this is x_0, and pictures have a mean (white paper is 1), so it is scaled about that.
    """
    every = (1, 2, 3)
    ratio = x0.std(every, keepdim=True) / guided.std(every, keepdim=True).clamp(min=1e-12)
    mean = guided.mean(every, keepdim=True)
    return mean + (guided - mean) * (share * ratio + 1 - share)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Scalar product of each picture, [B, 1, 1, 1]."""
    return (a * b).sum((1, 2, 3), keepdim=True)
