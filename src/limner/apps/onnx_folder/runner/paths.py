"""The path between picture and noise: x_t = alpha x_0 + sigma noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


class FlowMatching:
    """(alpha, sigma) = (1 - s, s), s = time / last; times from last (noise) to 0 (the picture)."""

    most_steps = 100_000

    def __init__(self, last: int) -> None:
        self.last = last

    def alpha(self, time: float) -> float:
        return 1 - time / self.last

    def sigma(self, time: float) -> float:
        return time / self.last

    def log_snr(self, time: float) -> float:
        """log(alpha / sigma)."""
        if time in (0, self.last):
            return math.inf if time == 0 else -math.inf
        return math.log1p(-time / self.last) - math.log(time / self.last)

    def ode_sigma(self, time: float) -> float:
        return self.sigma(time)

    def times(self, sampling: dict[str, Any]) -> list[float]:
        """With even times f, logit(s) = power logit(f) + log(shift)."""
        steps, shift = sampling["num_inference_steps"], sampling["shift"]
        found = []
        for i in range(steps + 1):
            even = 1 - i / steps
            if (power := sampling["timestep_power"]) != 1:
                even = even**power / (even**power + (1 - even) ** power)
            found.append(self.last * shift * even / (1 + (shift - 1) * even))
        found[0] = float(self.last)
        return found[sampling["zero_init_steps"] :]


class Diffusion:
    """alpha^2 + sigma^2 = 1 by betas (Ho et al. 2020, arXiv 2006.11239); times are whole, from
    last - 1 to -1 (the picture)."""

    def __init__(self, last: int, start: float, end: float, kind: str) -> None:
        self.last = self.most_steps = last
        if kind == "squaredcos_cap_v2":
            angle = (np.linspace(0, 1, last + 1) + 0.008) / 1.008 * np.pi / 2
            betas = np.minimum(1 - np.cos(angle[1:]) ** 2 / np.cos(angle[:-1]) ** 2, 0.999)
        elif kind == "scaled_linear":
            betas = np.linspace(start**0.5, end**0.5, last) ** 2
        else:
            betas = np.linspace(start, end, last)
        kept = np.cumsum(np.log1p(-betas))
        self.table = ((kept - np.log(-np.expm1(kept))) / 2).tolist()

    def log_snr(self, time: float) -> float:
        return math.inf if time < 0 else self.table[round(time)]

    def alpha(self, time: float) -> float:
        return 1.0 if time < 0 else math.sqrt(1 / (1 + math.exp(-2 * self.log_snr(time))))

    def sigma(self, time: float) -> float:
        return 0.0 if time < 0 else math.sqrt(1 / (1 + math.exp(2 * self.log_snr(time))))

    def ode_sigma(self, time: float) -> float:
        return math.exp(-self.log_snr(time))

    def times(self, sampling: dict[str, Any]) -> list[float]:
        """Trailing: the first is always the noisiest (Lin et al. 2023, arXiv 2305.08891)."""
        steps = sampling["num_inference_steps"]
        found = np.rint(np.linspace(steps, 0, steps + 1) * (self.last / steps)) - 1
        return found.tolist()


Schedule = FlowMatching | Diffusion


def schedule_of(settings: dict[str, Any]) -> Schedule:
    last = settings["num_train_timesteps"]
    if settings["objective"] == "flow_matching":
        return FlowMatching(last)
    return Diffusion(last, settings["beta_start"], settings["beta_end"], settings["beta_schedule"])
