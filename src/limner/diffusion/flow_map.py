"""Flow maps: networks that are told where a step ends, so that one step may be a long one.

A denoiser D(x_s, s) says which picture x_s would become if the ODE went straight on from s. A flow
map D(x_s, s, s - r) says which picture to step towards so as to end where the ODE itself ends at r:
`ddim` with it goes from x_s to x_r in one step (Boffi et al. 2024, arXiv 2406.07507; on the flow
path u = (x_s - D) / s is the average velocity of MeanFlow, Geng et al. 2025, arXiv 2505.13447). It
learns that from pairs of states on trajectories that a solver has drawn.

States are [B, C, H, W]; timesteps and spans are [B].
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from limner.diffusion.noise_schedule import NoiseSchedule
from limner.diffusion.objective import MIN_DIVISOR, Objective
from limner.diffusion.solvers import Denoiser
from limner.text.conditioning import TextConditioning


def flow_map_denoiser(
    model: Callable[[Tensor, Tensor, TextConditioning, Tensor], Tensor],
    objective: Objective,
    text: TextConditioning,
    timesteps: Tensor,
    dtype: torch.dtype,
) -> Denoiser:
    """The denoiser that `ddim` calls at each of these timesteps to reach the next.

    Args:
        model: `model(x, t, y, span)`.
        timesteps: [n + 1], those that the solver is given.
        dtype: autocast dtype of the network; float32 disables autocast.
    """
    spans = {s: s - r for s, r in pairwise(timesteps.tolist())}

    def denoise(x: Tensor, timestep: float) -> Tensor:
        t = torch.full((x.shape[0],), timestep, dtype=torch.float32, device=x.device)
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            output = model(x, t, text, torch.full_like(t, spans[timestep]))
        return objective.to_x0(output, x, t)

    return denoise


def timesteps_from(strength: float, known: Tensor, num_inference_steps: int) -> Tensor:
    """Of image-to-image: only steps that the flow map has learned, from the known time that is
    nearest to the strength.

    Args:
        strength: share of the noise to begin at, 0 to 1.
        known: float64 [n + 1], the times of the trajectories that it learned from. It has learned
            their parts of each length that divides n, one behind the other.
        num_inference_steps: of a drawing from noise; no step is longer than there.

    Returns:
        float64 [k + 1], some of the known times; k is 0 only where the strength is.
    """
    whole = len(known) - 1
    longest = max(1, whole // num_inference_steps)
    place = whole if strength == 0 else int((known[:-1] - strength * known[0]).abs().argmin())
    places = [place]
    while place < whole:
        lengths = (n for n in range(1, longest + 1) if whole % n == 0 and place % n == 0)
        place += max(lengths)
        places.append(place)
    return known[places]


def picture_ahead(
    x_s: Tensor, x_r: Tensor, s: Tensor, r: Tensor, noise_schedule: NoiseSchedule
) -> Tensor:
    """The picture towards which one step of `ddim` leads from x_s at s to x_r at r < s.

    `ddim` goes to x_r = q x_s + (alpha_r - q alpha_s) x_0, q = sigma_r / sigma_s, solved for x_0.
    """
    alpha_s, alpha_r = (_column(noise_schedule.alpha(t)) for t in (s, r))
    ratio = _column(noise_schedule.sigma(r)) / _column(noise_schedule.sigma(s))
    return (x_r.float() - ratio * x_s.float()) / (alpha_r - ratio * alpha_s)


def flow_map_loss(
    objective: Objective, output: Tensor, x_s: Tensor, x_r: Tensor, s: Tensor, r: Tensor
) -> Tensor:
    """The squared error of the average velocity (or v) from x_s to x_r, float32 [B].

    Args:
        output: the network's, at x_s, s, and the span s - r.
        x_s, x_r: two states of one trajectory.
    """
    schedule = objective.noise_schedule
    error = objective.to_x0(output, x_s, s) - picture_ahead(x_s, x_r, s, r, schedule)
    sigma = _column(schedule.sigma(s)).clamp(min=MIN_DIVISOR)
    return (error / sigma).square().mean(dim=(1, 2, 3))


def _column(values: Tensor) -> Tensor:
    return values.float().reshape(-1, 1, 1, 1)
