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

from limner.diffusion.noise_schedule import VPSchedule
from limner.diffusion.objective import Objective
from limner.diffusion.solvers import Denoiser
from limner.text.conditioning import TextConditioning

LEAST_ALPHA = 0.25
"""The least that a student's output of epsilon is divided by; see `picture_ahead`."""
HUBER = 0.03
"""An error (of an image from -1 to 1) above which the penalty grows linearly: 4 of 255."""


def flow_map_denoiser(
    model: Callable[..., Tensor],
    objective: Objective,
    text: TextConditioning,
    timesteps: Tensor,
    dtype: torch.dtype,
    guidance: float | Tensor | None = None,
) -> Denoiser:
    """The denoiser that `ddim` calls at each of these timesteps to reach the next.

    Args:
        model: `model(x, t, y, span)`, or `model(x, t, y, span, guidance)`.
        timesteps: [n + 1], those that the solver is given.
        dtype: autocast dtype of the network; float32 disables autocast.
        guidance: the scale that the network is told, of all pictures or of each, [B]; None: it is
            told none.
    """
    spans = {s: s - r for s, r in pairwise(timesteps.tolist())}

    def denoise(x: Tensor, timestep: float) -> Tensor:
        t = torch.full((x.shape[0],), timestep, dtype=torch.float32, device=x.device)
        scale = torch.full_like(t, guidance) if isinstance(guidance, float) else guidance
        told = () if scale is None else (scale,)
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            output = model(x, t, text, torch.full_like(t, spans[timestep]), *told)
        return picture_ahead(objective, output, x, t)

    return denoise


def picture_ahead(objective: Objective, output: Tensor, x_s: Tensor, s: Tensor) -> Tensor:
    """The picture to step towards that the network's output means, float32 [B, C, H, W].

    It is `Objective.to_x0` but for a network that begins with the weights of one that predicts
    epsilon on a beta schedule. There x_0 = (x_s - sigma epsilon) / alpha, which multiplies what the
    output misses by 157 where alpha is 0.006, in pure noise. With v = (epsilon - sigma x_s) / alpha
    it is the same as

        x_0 = alpha x_s - sigma v

    (Salimans & Ho 2022, arXiv 2202.00512, appendix D), where nothing is divided any more. So the
    output means v = (output - sigma x_s) / max(alpha, `LEAST_ALPHA`): what it meant to the teacher
    where alpha is larger, and in more noise a velocity times a constant, which the student learns.
    """
    schedule = objective.noise_schedule
    if objective.prediction_type != "epsilon" or not isinstance(schedule, VPSchedule):
        return objective.to_x0(output, x_s, s)
    alpha, sigma, x_s = _column(schedule.alpha(s)), _column(schedule.sigma(s)), x_s.float()
    v = (output.float() - sigma * x_s) / alpha.clamp(min=LEAST_ALPHA)
    return alpha * x_s - sigma * v


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


def flow_map_loss(
    objective: Objective, output: Tensor, x_s: Tensor, x_r: Tensor, s: Tensor, r: Tensor
) -> Tensor:
    """How far the step from x_s misses x_r, over the length of the step: float32 [B].

    A step's error is that of the average velocity times its length, and of the n steps of a drawing
    each is chosen with 1/n: over their length, drawings in any number of steps count the same. The
    error's penalty is pseudo-Huber (Charbonnier et al. 1997), that of Song & Dhariwal 2023 (arXiv
    2310.14189, eq. 9) number by number: a square for what is small beside `HUBER`, and linear in
    what is large, so that edges, which are missed by much, do not drown flat colours.

    Args:
        output: the network's, at x_s, s, and the span s - r.
        x_s, x_r: two states of one trajectory.
    """
    error = end_of_step(objective, output, x_s, s, r) - x_r.float()
    penalty = 2 * HUBER * ((error.square() + HUBER**2).sqrt() - HUBER)
    return penalty.mean(dim=(1, 2, 3)) / span_of(objective, s, r)


def end_of_step(objective: Objective, output: Tensor, x_s: Tensor, s: Tensor, r: Tensor) -> Tensor:
    """Where the step of `ddim` from x_s at s ends at r: float32 [B, C, H, W].

    Args:
        output: the network's, at x_s, s, and the span s - r.
    """
    schedule = objective.noise_schedule
    alpha_s, alpha_r = (_column(schedule.alpha(t)) for t in (s, r))
    ratio = _column(schedule.sigma(r)) / _column(schedule.sigma(s))
    ahead = picture_ahead(objective, output, x_s, s)
    return ratio * x_s.float() + (alpha_r - ratio * alpha_s) * ahead


def span_of(objective: Objective, s: Tensor, r: Tensor) -> Tensor:
    """The length of a step, as a share of all times: float32 [B]."""
    return (s - r).float() / objective.noise_schedule.num_train_timesteps


def _column(values: Tensor) -> Tensor:
    return values.float().reshape(-1, 1, 1, 1)
