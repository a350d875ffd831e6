"""Noise schedules: x_t = alpha(t) * x_0 + sigma(t) * noise.

Both paths measure time in `timesteps`, floats that grow with the noise: 0 is the (nearly) clean
picture, `num_train_timesteps` is noise. The signal-to-noise ratio is given as
lambda(t) = log(alpha / sigma), half the log of the usual ratio of variances, as DPM-Solver has it.
"""

from dataclasses import dataclass
from functools import cached_property
from math import ceil, pi
from typing import Any

import torch
from torch import Tensor

from limner.errors import LimnerError


@dataclass(frozen=True)
class FlowMatchingSchedule:
    """The linear path of flow matching: (alpha, sigma) = (1 - s, s) with s = t /
    num_train_timesteps.

    Rectified flow (Liu et al. 2022, arXiv 2209.03003), flow matching with the optimal-transport
    path (Lipman et al. 2022, arXiv 2210.02747).

    Attributes:
        num_train_timesteps: the timestep of pure noise.
        logit_mean: mean of logit(1 - s) in training. Note the sign: +1 trains mostly on clean
            pictures, JiT's P_mean of -0.8 mostly on noisy ones.
        logit_std: standard deviation of that logit, above 0.
        uniform_share: fraction of timesteps sampled uniformly instead, 0 to 1.
        logit_mean_end: value of the mean at the end of training. None: constant.
    """

    num_train_timesteps: int = 1000
    logit_mean: float = 0.0
    logit_std: float = 1.0
    uniform_share: float = 0.0
    logit_mean_end: float | None = None

    def alpha(self, timesteps: Tensor) -> Tensor:
        """Coefficient of the picture; the shape of `timesteps`, float32 (float64 if they are)."""
        return _like(timesteps, 1 - self._fraction(timesteps))

    def sigma(self, timesteps: Tensor) -> Tensor:
        """Coefficient of the noise; the shape of `timesteps`, float32 (float64 if they are)."""
        return _like(timesteps, self._fraction(timesteps))

    def log_snr(self, timesteps: Tensor) -> Tensor:
        """log(alpha / sigma): +inf at 0, -inf at `num_train_timesteps`."""
        fraction = self._fraction(timesteps)
        return _like(timesteps, torch.log1p(-fraction) - torch.log(fraction))

    def ode_sigma(self, timesteps: Tensor) -> Tensor:
        """The variable r in which the path's ODE reads dx/dr = (x - x_0) / r: here it is sigma."""
        return self.sigma(timesteps)

    def training_timesteps(self, u: Tensor, moved: float = 0.0) -> Tensor:
        """Map uniform random numbers to training timesteps.

        The logit-normal distribution of Esser et al. 2024 (arXiv 2403.03206, section 3.1), mixed
        with a uniform one. One number in, one time out: numbers that are evenly spread over (0, 1)
        give times that are evenly spread over the distribution.

        Args:
            u: [B], uniform in (0, 1). Those below `uniform_share` give the uniform part.
            moved: how far the mean is on its way from `logit_mean` to `logit_mean_end`, 0 to 1.

        Returns:
            [B] of u's dtype, in [0, num_train_timesteps].
        """
        share = self.uniform_share
        is_uniform = u < share
        # Each part gets a number in (0, 1) of its own.
        v = torch.where(is_uniform, u / share, (u - share) / (1 - share))
        # The normal distribution is symmetric and logit(s) = -logit(1 - s), hence the minus.
        end = self.logit_mean if self.logit_mean_end is None else self.logit_mean_end
        mean = self.logit_mean + moved * (end - self.logit_mean)
        logit_normal = torch.sigmoid(self.logit_std * torch.special.ndtri(v) - mean)
        return torch.where(is_uniform, v, logit_normal) * self.num_train_timesteps

    def inference_timesteps(
        self,
        num_inference_steps: int,
        shift: float = 1.0,
        power: float = 1.0,
        strength: float = 1.0,
    ) -> Tensor:
        """The timesteps of a solver.

        With even times f from 1 to 0, logit(s) = power * logit(f) + log(shift).

        Args:
            num_inference_steps: n, at least 1.
            shift: above 1 spends more of the steps on noisy pictures, as large pictures want;
                s = shift * f / (1 + (shift - 1) * f) (Esser et al. 2024, equation 23).
            power: above 1 spends more of them at both ends, near noise and near the picture, and
                fewer in between.
            strength: share of the whole noise to begin at, 0 to 1: only as many steps are taken as
                a drawing from noise has from there on.

        Returns:
            float64 [k + 1] on the CPU, descending from `strength * num_train_timesteps` to 0; k is
            n where the strength is 1, and 0 where it is 0.
        """
        _check_steps(num_inference_steps)
        _check_strength(strength)
        if shift <= 0 or power <= 0:
            raise LimnerError(
                f"The time shift is {shift} and the power {power}; both must be above 0 (1 leaves "
                "times alone)."
            )
        # Where on the line of even times this strength lies: shift and power backwards.
        first = _stretched(strength / (shift + (1 - shift) * strength), 1 / power)
        steps = _whole_steps(first * num_inference_steps)
        fraction = torch.linspace(first, 0, steps + 1, dtype=torch.float64)
        fraction = _stretched(fraction, power)
        times = self.num_train_timesteps * shift * fraction / (1 + (shift - 1) * fraction)
        # Exactly, for beyond pure noise log_snr is no number, and 0.7 / (1 + (0.7 - 1)) is above 1.
        times[0] = strength * self.num_train_timesteps
        return times

    def _fraction(self, timesteps: Tensor) -> Tensor:
        return _precise(timesteps) / self.num_train_timesteps


@dataclass(frozen=True)
class VPSchedule:
    """The variance-preserving path of DDPM: alpha^2 + sigma^2 = 1, set by a schedule of betas.

    Ho et al. 2020 (arXiv 2006.11239): alpha_t^2 = (1 - beta_0) ... (1 - beta_t), t = 0 .. T-1. The
    schedules are those of diffusers' DDPMScheduler. At t = 0 the picture already has the noise of
    one beta; the clean picture is t = -1, the empty product. Times between whole ones are
    interpolated linearly in log-SNR; all below 0 are clean, and all above T-1 are T-1.

    Attributes:
        num_train_timesteps: T, the number of betas.
        beta_start: the first beta, in (0, 1); "squaredcos_cap_v2" does not ask for it.
        beta_end: the last beta, likewise.
        beta_schedule: "linear" (DDPM), "scaled_linear" (linear in the square root, as in Stable
            Diffusion) or "squaredcos_cap_v2" (cosine, Nichol & Dhariwal 2021, arXiv 2102.09672).
    """

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str = "linear"

    def __post_init__(self) -> None:
        known = ("linear", "scaled_linear", "squaredcos_cap_v2")
        if self.beta_schedule not in known:
            raise LimnerError(
                f"scheduler.beta_schedule is {self.beta_schedule!r}; use one of {', '.join(known)}."
            )

    def alpha(self, timesteps: Tensor) -> Tensor:
        """Coefficient of the picture; the shape of `timesteps`, float32 (float64 if they are)."""
        return _like(timesteps, torch.sigmoid(2 * self._log_snr(timesteps)).sqrt())

    def sigma(self, timesteps: Tensor) -> Tensor:
        """Coefficient of the noise; the shape of `timesteps`, float32 (float64 if they are)."""
        return _like(timesteps, torch.sigmoid(-2 * self._log_snr(timesteps)).sqrt())

    def log_snr(self, timesteps: Tensor) -> Tensor:
        """log(alpha / sigma): +inf where the picture is clean."""
        return _like(timesteps, self._log_snr(timesteps))

    def ode_sigma(self, timesteps: Tensor) -> Tensor:
        """The variable r in which the ODE reads d(x/alpha)/dr = (x/alpha - x_0) / r: sigma / alpha.

        k-diffusion's and EDM's sigma (Karras et al. 2022, arXiv 2206.00364).
        """
        return _like(timesteps, torch.exp(-self._log_snr(timesteps)))

    def training_timesteps(self, u: Tensor, moved: float = 0.0) -> Tensor:
        """Map uniform random numbers u [B] in (0, 1) to the integer timesteps 0 .. T-1, all equally
        likely throughout the run; `moved` is unused here."""
        return (u * self.num_train_timesteps).floor()

    def inference_timesteps(
        self,
        num_inference_steps: int,
        shift: float = 1.0,
        power: float = 1.0,
        strength: float = 1.0,
    ) -> Tensor:
        """The timesteps of a solver, with "trailing" spacing and a clean end.

        Lin et al. 2023 (arXiv 2305.08891, table 2): the first is always T-1, the noisiest of all.

        Args:
            num_inference_steps: n, 1 to T.
            shift, power: must be 1; only the flow path has them.
            strength: share of the whole schedule to begin at, 0 to 1.

        Returns:
            float64 [k + 1] on the CPU, descending whole numbers from T-1, or from
            `strength * T - 1`, to -1 (clean); k is n where the strength is 1, and 0 where it is 0.
        """
        _check_steps(num_inference_steps)
        _check_strength(strength)
        if num_inference_steps > self.num_train_timesteps:
            raise LimnerError(
                f"num_inference_steps is {num_inference_steps}, but the beta schedule has only "
                f"{self.num_train_timesteps} timesteps; use at most that many."
            )
        if shift != 1 or power != 1:
            raise LimnerError(
                f"The time shift is {shift} and the power {power}, but a beta schedule cannot be "
                "shifted; leave them at 1."
            )
        first = strength * num_inference_steps
        steps = torch.linspace(first, 0, _whole_steps(first) + 1, dtype=torch.float64)
        rounded = torch.round(steps * (self.num_train_timesteps / num_inference_steps)) - 1
        return torch.unique_consecutive(rounded)

    @cached_property
    def _log_snr_table(self) -> Tensor:
        """float64 [T]: log(alpha / sigma) of the whole timesteps."""
        start, end, count = self.beta_start, self.beta_end, self.num_train_timesteps
        if self.beta_schedule == "linear":
            betas = torch.linspace(start, end, count, dtype=torch.float64)
        elif self.beta_schedule == "scaled_linear":
            betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64) ** 2
        else:
            time = torch.linspace(0, 1, count + 1, dtype=torch.float64)
            alpha_bar = torch.cos((time + 0.008) / 1.008 * pi / 2) ** 2
            betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
        log_alpha_squared = torch.log1p(-betas).cumsum(0)
        return (log_alpha_squared - torch.log(-torch.expm1(log_alpha_squared))) / 2

    def _log_snr(self, timesteps: Tensor) -> Tensor:
        table = self._log_snr_table.to(_precise(timesteps))
        position = _precise(timesteps).clamp(0, self.num_train_timesteps - 1)
        low = position.floor().long()
        high = position.ceil().long()
        log_snr = torch.lerp(table[low], table[high], position - low)
        return torch.where(timesteps < 0, torch.inf, log_snr)


NoiseSchedule = FlowMatchingSchedule | VPSchedule


def _precise(timesteps: Tensor) -> Tensor:
    # Differences such as 1 - alpha^2 want float64, which Apple's GPU does not have.
    return timesteps.to(torch.float32 if timesteps.device.type == "mps" else torch.float64)


def _like(timesteps: Tensor, values: Tensor) -> Tensor:
    return values.to(torch.float64 if timesteps.dtype == torch.float64 else torch.float32)


def _stretched(fraction: Any, power: float) -> Any:
    """f^p / (f^p + (1 - f)^p), whose logit is p times that of f."""
    if power == 1:
        return fraction
    return fraction**power / (fraction**power + (1 - fraction) ** power)


def _whole_steps(steps: float) -> int:
    """Steps for a part of the way: none of them longer than those of the whole way."""
    return ceil(steps - 1e-9)


def _check_strength(strength: float) -> None:
    if not 0 <= strength <= 1:
        raise LimnerError(f"strength is {strength}; it must be from 0 to 1.")


def _check_steps(num_inference_steps: int) -> None:
    if num_inference_steps < 1:
        raise LimnerError(f"num_inference_steps is {num_inference_steps}; it must be at least 1.")
