"""Sampling of the published DiT: respaced DDPM with learned variance, or DDIM.

Peebles & Xie 2022 took both from ADM (Dhariwal & Nichol 2021), and that from Nichol & Dhariwal 2021
(arXiv 2102.09672).
"""

from __future__ import annotations

from collections.abc import Callable
from math import log

import torch
from torch import Tensor

from limner.diffusion.noise_schedule import VPSchedule
from limner.diffusion.solvers import Noise, ddim
from limner.errors import LimnerError

PATH = VPSchedule(1000, 1e-4, 0.02, "linear")
"""The schedule of betas that the published weights were trained with."""
Predictor = Callable[[Tensor, float], tuple[Tensor, Tensor]]
"""(x [B, C, H, W], timestep) -> noise and the variance's place, -1 to 1, both like x."""


def respaced_timesteps(num_inference_steps: int) -> Tensor:
    """n of the 1000 timesteps, evenly from 999 to 0, and the clean end.

    Rounded as published: half to even, of a sum of strides.

    Returns:
        float64 [n + 1], descending whole numbers from 999 to 0, then -1 (clean).
    """
    count, total = num_inference_steps, PATH.num_train_timesteps
    if not 2 <= count <= total:
        raise LimnerError(f"num_inference_steps is {count}; take 2 to {total}")
    taken, place = [-1], 0.0
    for _ in range(count):
        taken.append(round(place))
        place += (total - 1) / (count - 1)
    return torch.tensor(taken[::-1], dtype=torch.float64)


def sample_ddpm(predict: Predictor, x: Tensor, num_inference_steps: int, noise: Noise) -> Tensor:
    """Ancestral sampling with a variance between its bounds (equations 11, 12, and 15).

    Args:
        x: float32 [B, C, H, W], pure noise.
        noise: i -> fresh normal noise like x for step i; not asked for at the last.
    """
    timesteps = respaced_timesteps(num_inference_steps)
    times = timesteps.tolist()
    alpha, sigma = PATH.alpha(timesteps).tolist(), PATH.sigma(timesteps).tolist()
    for i in range(num_inference_steps):
        epsilon, place = predict(x, times[i])
        x0 = (x - sigma[i] * epsilon) / alpha[i]
        decay = alpha[i] / alpha[i + 1]
        shrink = (sigma[i + 1] / sigma[i]) ** 2
        beta = 1 - decay**2
        x = decay * shrink * x + alpha[i + 1] * beta / sigma[i] ** 2 * x0
        if sigma[i + 1] > 0:  # the largest variance is beta, the smallest that of the posterior
            share = (place + 1) / 2
            log_variance = share * log(beta) + (1 - share) * log(beta * shrink)
            x = x + torch.exp(0.5 * log_variance) * noise(i)
    return x


def sample_ddim(predict: Predictor, x: Tensor, num_inference_steps: int) -> Tensor:
    """Deterministic, over the same timesteps (Song et al. 2020, eta = 0)."""

    def denoise(x: Tensor, timestep: float) -> Tensor:
        at = torch.tensor(timestep, dtype=torch.float64)
        return (x - PATH.sigma(at).item() * predict(x, timestep)[0]) / PATH.alpha(at).item()

    return ddim(denoise, x, respaced_timesteps(num_inference_steps), PATH)
