"""Samplers (ODE and SDE solvers) that turn noise into a picture by calling a denoiser, as in
k-diffusion.

Each solver takes
    denoise(x, timestep) -> the clean picture x_0 that x, seen at that time, would become;
    x: float32 [B, C, H, W], pure noise to begin with;
    timesteps: float64 [n + 1], descending, from `noise_schedule.inference_timesteps`;
    noise(i) -> fresh normal noise like x for step i; only `ddpm` asks for it;
    callback(i, x_0), called after the denoiser at each step i;
and returns the picture at the last of the timesteps.

All deterministic ones are one and the same step, `_step`, and differ in how well they guess the x_0
to step towards. Coefficients are Python floats (float64), the state is float32.
"""

from collections.abc import Callable
from math import expm1, sqrt
from typing import Protocol

from torch import Tensor

from limner.diffusion.noise_schedule import NoiseSchedule
from limner.errors import LimnerError

Denoiser = Callable[[Tensor, float], Tensor]
Noise = Callable[[int], Tensor]
Callback = Callable[[int, Tensor], None]


class Solver(Protocol):
    def __call__(
        self,
        denoise: Denoiser,
        x: Tensor,
        timesteps: Tensor,
        noise_schedule: NoiseSchedule,
        noise: Noise | None = None,
        callback: Callback | None = None,
    ) -> Tensor: ...


def ddim(
    denoise: Denoiser,
    x: Tensor,
    timesteps: Tensor,
    noise_schedule: NoiseSchedule,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """First order, deterministic (Song et al. 2020, arXiv 2010.02502, equation 12 with eta = 0).

    Euler's method is the same step, so "euler" names this function too. With
    r = `noise_schedule.ode_sigma` the ODE is dy/dr = (y - x_0) / r, y being x on the flow path,
    x / alpha on the diffusion path. Euler goes to y' = y + (r' - r) * (y - x_0) / r
    = x_0 + (r' / r) * (y - x_0): x_0 stays and the noise shrinks by r' / r, which is `_step`.
    """
    times = timesteps.tolist()
    for i in range(len(times) - 1):
        x0 = denoise(x, times[i])
        if callback is not None:
            callback(i, x0)
        x = _step(x, x0, timesteps[i : i + 2], noise_schedule)
    return x


def heun(
    denoise: Denoiser,
    x: Tensor,
    timesteps: Tensor,
    noise_schedule: NoiseSchedule,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Second order, with two denoiser calls per step and one for the last.

    Karras et al. 2022, arXiv 2206.00364, algorithm 1 in the variables of each path (see `ddim`).

    Heun averages the slopes (y - x_0) / r and (y' - x_0') / r' at both ends of an Euler step. With
    Euler's y' put in, the average is the slope of a step towards x_0 + (r / r') / 2 * (x_0' - x_0).

    "squaredcos_cap_v2" begins in almost pure noise, where r / r' of a long step is in the hundreds
    and multiplies the network's every error; take "dpmsolver++" there.
    """
    times = timesteps.tolist()
    ode_sigma = noise_schedule.ode_sigma(timesteps).tolist()
    for i in range(len(times) - 1):
        x0 = denoise(x, times[i])
        if callback is not None:
            callback(i, x0)
        x_next = _step(x, x0, timesteps[i : i + 2], noise_schedule)
        if ode_sigma[i + 1] > 0:  # there is no slope at r' = 0, hence Euler
            change = denoise(x_next, times[i + 1]) - x0
            better = x0 + 0.5 * ode_sigma[i] / ode_sigma[i + 1] * change
            x_next = _step(x, better, timesteps[i : i + 2], noise_schedule)
        x = x_next
    return x


def dpmsolver_pp_2m(
    denoise: Denoiser,
    x: Tensor,
    timesteps: Tensor,
    noise_schedule: NoiseSchedule,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DPM-Solver++(2M): second order with one denoiser call per step.

    Lu et al. 2022, arXiv 2211.01095, algorithm 2: x_0 is extrapolated linearly in
    `noise_schedule.log_snr` from this and the previous prediction, and evaluated at the middle of
    the step. First order at the first step, which has no previous prediction, and at the last,
    whose middle is at infinity.
    """
    times = timesteps.tolist()
    log_snr = noise_schedule.log_snr(timesteps).tolist()
    previous = x
    for i in range(len(times) - 1):
        x0 = denoise(x, times[i])
        if callback is not None:
            callback(i, x0)
        better = x0
        if 0 < i < len(times) - 2:
            # On the flow path the first step began at -inf: the slope over it is 0.
            slope = (x0 - previous) / (log_snr[i] - log_snr[i - 1])
            better = x0 + 0.5 * (log_snr[i + 1] - log_snr[i]) * slope
        x = _step(x, better, timesteps[i : i + 2], noise_schedule)
        previous = x0
    return x


def unipc(
    denoise: Denoiser,
    x: Tensor,
    timesteps: Tensor,
    noise_schedule: NoiseSchedule,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """UniPC of second order, with B(h) = e^h - 1 ("bh2"): one denoiser call per step, used twice.

    Zhao et al. 2023, arXiv 2302.04867, algorithms 1 and 2. A step is predicted as in
    DPM-Solver++(2M). The prediction at its end then also corrects the step: it is repeated from its
    start with the predictions at both ends and the previous one.
    """
    times = timesteps.tolist()
    log_snr = noise_schedule.log_snr(timesteps).tolist()
    begun, previous, slope = x, x, x  # where the last step began, its guess, and x_0's slope there
    for i in range(len(times) - 1):
        x0 = denoise(x, times[i])
        if callback is not None:
            callback(i, x0)
        if i > 0:
            h = log_snr[i] - log_snr[i - 1]
            change = x0 - previous
            better = previous + 0.5 * change
            if i > 1:
                own, before = _corrector_weights(h, log_snr[i - 1] - log_snr[i - 2])
                better = previous + own * change + before * h * slope
            x = _step(begun, better, timesteps[i - 1 : i + 1], noise_schedule)
            slope = change / h  # 0 over the first step of the flow path, which began at -inf
        better = x0
        if 0 < i < len(times) - 2:
            better = x0 + 0.5 * (log_snr[i + 1] - log_snr[i]) * slope
        begun, previous = x, x0
        x = _step(x, better, timesteps[i : i + 2], noise_schedule)
    return x


def _corrector_weights(h: float, h_before: float) -> tuple[float, float]:
    """UniC-2: how much x_0's change over a step of length h counts for that step, and how much its
    slope over the step before (equation 9 of the paper, R a = b, solved for two unknowns)."""
    b1 = -1 / expm1(-h) - 1 / h
    b2 = -1 / expm1(-h) - 2 * b1 / h
    before = (b1 - b2) / (1 + h_before / h)
    return b1 - before, before


def ddpm(
    denoise: Denoiser,
    x: Tensor,
    timesteps: Tensor,
    noise_schedule: NoiseSchedule,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Ancestral sampling: each step samples from the Gaussian q(x_s | x_t, x_0), s < t.

    Kingma et al. 2021 (arXiv 2107.00630, appendix A), for any path. On the diffusion path it is
    DDPM's posterior with the lower of its two variances ("fixed_small").
    """
    if noise is None:
        raise LimnerError("The solver 'ddpm' draws fresh noise at each step: pass `noise`.")
    times = timesteps.tolist()
    alpha, sigma = (
        noise_schedule.alpha(timesteps).tolist(),
        noise_schedule.sigma(timesteps).tolist(),
    )
    for i in range(len(times) - 1):
        x0 = denoise(x, times[i])
        if callback is not None:
            callback(i, x0)
        decay = alpha[i] / alpha[i + 1]
        shrink = (sigma[i + 1] / sigma[i]) ** 2
        fresh = 1 - decay**2 * shrink  # the share of x's noise variance that came between s and t
        x = decay * shrink * x + alpha[i + 1] * fresh * x0
        if sigma[i + 1] > 0:
            x = x + sigma[i + 1] * sqrt(fresh) * noise(i)
    return x


def _step(x: Tensor, x0: Tensor, pair: Tensor, noise_schedule: NoiseSchedule) -> Tensor:
    """Moves x from the first time of the pair to the second; its x0 and its noise stay the same."""
    alpha, alpha_next = noise_schedule.alpha(pair).tolist()
    sigma, sigma_next = noise_schedule.sigma(pair).tolist()
    ratio = sigma_next / sigma
    return ratio * x + (alpha_next - ratio * alpha) * x0


SOLVERS: dict[str, Solver] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": ddim,
    "heun": heun,
    "dpmsolver++": dpmsolver_pp_2m,
    "unipc": unipc,
}
