"""Solvers: noise to a picture, step by step, by calling a denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from limner.apps.onnx_folder.runner.paths import Schedule

Array = np.ndarray
Denoiser = Callable[[Array, float], Array]
"""(x, time) -> x_0: the clean pictures that x, seen at that time, would become; [n, C, h, w]."""
Noise = Callable[[], Array]


def step(x: Array, x0: Array, now: float, after: float, schedule: Schedule) -> Array:
    """From one time to the next towards x0, which all deterministic solvers share."""
    ratio = schedule.sigma(after) / schedule.sigma(now)
    return ratio * x + (schedule.alpha(after) - ratio * schedule.alpha(now)) * x0


def ddim(denoise: Denoiser, x: Array, times: list[float], schedule: Schedule, _: Noise) -> Array:
    """Song et al. 2020, arXiv 2010.02502; Euler's method is the same step."""
    for now, after in pairwise(times):
        x = step(x, denoise(x, now), now, after, schedule)
    return x


def heun(denoise: Denoiser, x: Array, times: list[float], schedule: Schedule, _: Noise) -> Array:
    """Karras et al. 2022, arXiv 2206.00364."""
    for now, after in pairwise(times):
        x0 = denoise(x, now)
        moved = step(x, x0, now, after, schedule)
        if schedule.ode_sigma(after) > 0:
            share = 0.5 * schedule.ode_sigma(now) / schedule.ode_sigma(after)
            x0 = x0 + share * (denoise(moved, after) - x0)
            moved = step(x, x0, now, after, schedule)
        x = moved
    return x


def dpmsolver(
    denoise: Denoiser, x: Array, times: list[float], schedule: Schedule, _: Noise
) -> Array:
    """DPM-Solver++(2M): Lu et al. 2022, arXiv 2211.01095."""
    snr, previous = [schedule.log_snr(time) for time in times], x
    for i, (now, after) in enumerate(pairwise(times)):
        better = x0 = denoise(x, now)
        if 0 < i < len(times) - 2:
            slope = (x0 - previous) / (snr[i] - snr[i - 1])
            better = x0 + 0.5 * (snr[i + 1] - snr[i]) * slope
        x, previous = step(x, better, now, after, schedule), x0
    return x


def unipc(denoise: Denoiser, x: Array, times: list[float], schedule: Schedule, _: Noise) -> Array:
    """UniPC of second order: Zhao et al. 2023, arXiv 2302.04867."""
    snr = [schedule.log_snr(time) for time in times]
    begun, previous, slope = x, x, x  # where the last step began, its guess, and x_0's slope there
    for i, (now, after) in enumerate(pairwise(times)):
        x0 = denoise(x, now)
        if i > 0:
            h, change = snr[i] - snr[i - 1], x0 - previous
            better = previous + 0.5 * change
            if i > 1:
                b1 = -1 / math.expm1(-h) - 1 / h
                b2 = -1 / math.expm1(-h) - 2 * b1 / h
                earlier = (b1 - b2) / (1 + (snr[i - 1] - snr[i - 2]) / h)
                better = previous + (b1 - earlier) * change + earlier * h * slope
            x = step(begun, better, times[i - 1], now, schedule)
            slope = change / h
        better = x0
        if 0 < i < len(times) - 2:
            better = x0 + 0.5 * (snr[i + 1] - snr[i]) * slope
        begun, previous = x, x0
        x = step(x, better, now, after, schedule)
    return x


def ddpm(
    denoise: Denoiser, x: Array, times: list[float], schedule: Schedule, noise: Noise
) -> Array:
    """Ancestral sampling (Kingma et al. 2021, arXiv 2107.00630, appendix A)."""
    for now, after in pairwise(times):
        x0 = denoise(x, now)
        decay = schedule.alpha(now) / schedule.alpha(after)
        shrink = (schedule.sigma(after) / schedule.sigma(now)) ** 2
        fresh = 1 - decay**2 * shrink
        x = decay * shrink * x + schedule.alpha(after) * fresh * x0
        if schedule.sigma(after) > 0:
            x = x + schedule.sigma(after) * math.sqrt(fresh) * noise()
    return x


SOLVERS = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": ddim,
    "heun": heun,
    "dpmsolver++": dpmsolver,
    "unipc": unipc,
}
