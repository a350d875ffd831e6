"""The search: coordinate descent over sampling settings, with successive halving.

A full grid would have thousands of settings. Parameters are optimised one at a time with the others
fixed (coordinate descent). For each parameter, half of the values are dropped after each round, and
the others are measured on twice as many images (successive halving, Jamieson & Talwalkar 2016,
arXiv 1502.07943). A setting uses as many steps as its cost allows: guidance at half of the noise
levels leaves evaluations for a third more steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from limner.apps.sweep.measurement import CLEARLY, Measurement, by_quality, within_noise
from limner.config import Config, SamplingConfig
from limner.config.checks import sampling_problems
from limner.config.distill import DistillConfig
from limner.diffusion.noise_schedule import NoiseSchedule
from limner.inference.sampling_settings import function_evaluations

Measure = Callable[[SamplingConfig, int], Measurement]
"""(setting, number of images) -> measurement. Raises TimeIsUp."""
Candidates = Callable[[SamplingConfig], list[SamplingConfig]]

CHOICES: dict[str, tuple[Any, ...]] = {
    "guidance_scale": (1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
    "guidance_interval": (
        *((0.0, 1.0), (0.0, 0.9), (0.0, 0.8), (0.0, 0.6)),
        *((0.1, 1.0), (0.1, 0.9), (0.2, 0.8), (0.3, 1.0), (0.3, 0.9), (0.5, 1.0)),
    ),
    "scheduler_type": ("dpmsolver++", "unipc", "ddim", "heun"),
    "shift": (0.5, 0.7, 1.0, 1.5, 2.0, 3.0),
    "timestep_power": (0.7, 0.85, 1.0, 1.2, 1.5),
    "guidance_type": ("cfg", "cfg_zero_star", "apg"),
}
"""In the order of the search: the most important parameters first."""
IN_ORDER = ("guidance_scale", "shift", "timestep_power")
"""Ordered parameters: if a good setting at a similar cost is known, only adjacent values are tried.
"""
FINER = (0.8, 1.25)
"""Factors of the guidance scale for the final refinement."""
MIDDLE = (0.2, 0.8)
"""Noise levels where guidance helps most (Kynkäänniemi et al. 2024, arXiv 2404.07724)."""
FIRST_COST = 16


class TimeIsUp(Exception):
    """The time limit of the search is reached; the results so far are used."""


def search(
    config: Config,
    noise_schedule: NoiseSchedule,
    start: SamplingConfig,
    costs: Sequence[int],
    images: int,
    measure: Measure,
) -> tuple[dict[int, SamplingConfig], bool]:
    """The best setting found at each cost, and whether the search was completed.

    Args:
        config: configuration of the model, which determines the valid settings.
        noise_schedule: of its objective.
        start: the initial setting.
        costs: maximum function evaluations per image.
        images: number of images in the last round of each parameter; the first has a quarter.
        measure: measures a setting.
    """
    found: dict[int, SamplingConfig] = {}
    finished = True
    rounds = rounds_of(images)
    for cost in sorted(costs, key=lambda c: (abs(math.log2(c / FIRST_COST)), c)):
        near = min(found, key=lambda c: abs(math.log2(c / cost)), default=None)
        best = at_cost(start if near is None else found[near], noise_schedule, cost)
        if best is None:  # not even one step fits: try without guidance
            best = at_cost(start.model_copy(update={"guidance_scale": 1.0}), noise_schedule, cost)
        if best is None:
            continue
        for candidates in stages(config, noise_schedule, cost, near is not None):
            try:
                best = halving(candidates(best), rounds, measure)
            except TimeIsUp:
                finished = False
                break
        found[cost] = best
    return found, finished


def few_steps(
    settings: DistillConfig,
    start: SamplingConfig,
    costs: Sequence[int],
    images: int,
    measure: Measure,
) -> tuple[dict[int, SamplingConfig], bool]:
    """Of a distilled model, whose solver is fixed: the most steps at each cost, and the best
    guidance scale for them if that is a setting; and whether the search was completed.

    Args:
        settings: of its distillation, which determine what it knows.
        images: number of images in the last round of the guidance scale.
    """
    found, finished, scales = {}, True, list[float]()
    if settings.guidance_range is not None:
        low, high = settings.guidance_range
        between = [scale for scale in CHOICES["guidance_scale"] if low < scale < high]
        scales = [scale for scale in (low, *between, high) if scale != start.guidance_scale]
    for cost in costs:
        steps = max(n for n in settings.numbers_of_steps if n <= cost)
        usual = start.model_copy(update={"num_inference_steps": steps})
        tried = [usual, *(usual.model_copy(update={"guidance_scale": s}) for s in scales)]
        found[cost] = usual
        try:
            found[cost] = halving(tried, rounds_of(images), measure)
        except TimeIsUp:
            finished = False
    return found, finished


def rounds_of(images: int) -> tuple[int, ...]:
    """Number of images in each round, ascending."""
    return tuple(sorted({max(2, images // part) for part in (4, 2, 1)}))


def stages(
    config: Config, noise_schedule: NoiseSchedule, cost: int, near: bool
) -> Iterator[Candidates]:
    """For each parameter, the candidates given the best setting so far, which comes first.

    Args:
        near: only try values adjacent to those that are good at a similar cost.
    """

    def settle(key: str, values: Callable[[SamplingConfig], Sequence[Any]]) -> Candidates:
        def candidates(best: SamplingConfig) -> list[SamplingConfig]:
            tried = [best]
            if best.guidance_scale == 1 and key in ("guidance_interval", "guidance_type"):
                return tried  # no effect without guidance
            for value in values(best):
                for changed in _with(best, key, value):
                    if not _fits(config, changed):
                        continue
                    fitting = at_cost(changed, noise_schedule, cost)
                    if fitting is not None and fitting not in tried:
                        tried.append(fitting)
            return tried

        return candidates

    for key, every in CHOICES.items():

        def values(best: SamplingConfig, key: str = key, every: Any = every) -> Sequence[Any]:
            now = getattr(best, key)
            if near and key in IN_ORDER:
                below, above = [v for v in every if v < now], [v for v in every if v > now]
                return [*below[-1:], *above[:1]]
            if near and key == "guidance_interval":
                return [v for v in every if abs(v[0] - now[0]) + abs(v[1] - now[1]) < 0.21]
            return every

        yield settle(key, values)
    yield settle("guidance_scale", lambda best: [round(best.guidance_scale * f, 2) for f in FINER])


def _with(best: SamplingConfig, key: str, value: Any) -> Iterator[SamplingConfig]:
    """The setting with one parameter changed. A guidance scale is tried at the current and at the
    middle noise levels, since a scale that is too high for all levels may be best there."""
    if key != "guidance_scale":
        yield best.model_copy(update={key: value})
    elif value == 1:  # canonical form: interval and type have no effect
        plain = {"guidance_scale": 1.0, "guidance_interval": (0.0, 1.0), "guidance_type": "cfg"}
        yield best.model_copy(update=plain)
    elif value > 1:
        for interval in dict.fromkeys((best.guidance_interval, MIDDLE)):
            yield best.model_copy(update={key: value, "guidance_interval": interval})


def halving(
    candidates: Sequence[SamplingConfig], rounds: Sequence[int], measure: Measure
) -> SamplingConfig:
    """The best of the candidates.

    Args:
        rounds: numbers of images, ascending. After each round only the better half remains, without
            those that are significantly worse than the best.
    """
    left = list(candidates)
    for count in rounds:
        if len(left) == 1:
            break
        found = [measure(sampling, count) for sampling in left]
        close = within_noise(found, CLEARLY)
        half = by_quality(found)[: 1 if count == rounds[-1] else math.ceil(len(found) / 2)]
        left = [m.sampling for m in half if m in close]
    return left[0]


@lru_cache(maxsize=4096)
def at_cost(
    sampling: SamplingConfig, noise_schedule: NoiseSchedule, cost: int
) -> SamplingConfig | None:
    """The setting with the most steps that `cost` evaluations allow; None if not even one fits."""

    def evaluations(steps: int) -> int:
        return function_evaluations(
            sampling.model_copy(update={"num_inference_steps": steps}), noise_schedule
        )

    free = sampling.zero_init_steps
    most = min(cost + free, getattr(noise_schedule, "num_train_timesteps", cost))
    if most <= free:
        return None
    # Evaluations are nearly proportional to steps: start slightly above the estimate.
    steps = min(most, free + math.ceil((most - free) * cost / max(1, evaluations(most))) + 2)
    while steps > free and evaluations(steps) > cost:
        steps -= 1
    if steps <= free:
        return None
    return sampling.model_copy(update={"num_inference_steps": steps})


def _fits(config: Config, sampling: SamplingConfig) -> bool:
    return not list(sampling_problems(config.model_copy(update={"sampling": sampling})))
