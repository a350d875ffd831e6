"""Which settings to try: one thing at a time, few pictures for many, more for the best.

A grid of all settings would be thousands. Each setting is a handful of choices, of which each is
settled in turn with the others as they are (coordinate descent); within a choice, half of the
values go after each round and the rest are measured on twice the pictures (successive halving,
Jamieson & Talwalkar 2016, arXiv 1502.07943). At one cost, a setting has as many steps as that cost
buys: guidance on half of the noise levels leaves evaluations for a third more steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from limner.apps.sweep.measurement import CLEARLY, Measurement, by_quality, within_noise
from limner.config import Config, SamplingConfig
from limner.config.checks import sampling_problems
from limner.diffusion.noise_schedule import NoiseSchedule
from limner.inference.sampling_settings import function_evaluations

Measure = Callable[[SamplingConfig, int], Measurement]
"""(setting, pictures) -> what was found. Raises TimeIsUp."""
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
"""In the order in which they are settled: what changes most first."""
IN_ORDER = ("guidance_scale", "shift", "timestep_power")
"""Choices with neighbours: where a setting is known to be good at a cost nearby, only those are
tried."""
FINER = (0.8, 1.25)
"""Of the guidance scale, once the rest is settled."""
MIDDLE = (0.2, 0.8)
"""Noise levels in which guidance does most good (Kynkäänniemi et al. 2024, arXiv 2404.07724)."""
FIRST_COST = 16


class TimeIsUp(Exception):
    """No more is measured in this search; what was found so far counts."""


def search(
    config: Config,
    noise_schedule: NoiseSchedule,
    start: SamplingConfig,
    costs: Sequence[int],
    images: int,
    measure: Measure,
) -> tuple[dict[int, SamplingConfig], bool]:
    """The best setting found at each cost, and whether the search came to its end.

    Args:
        config: the model's, which says what fits it.
        noise_schedule: of its objective.
        start: the setting to begin with.
        costs: network evaluations for one picture, at most.
        images: for the last round of each choice; the first has a quarter of it.
        measure: is asked for few pictures first.
    """
    found: dict[int, SamplingConfig] = {}
    finished = True
    rounds = rounds_of(images)
    for cost in sorted(costs, key=lambda c: (abs(math.log2(c / FIRST_COST)), c)):
        near = min(found, key=lambda c: abs(math.log2(c / cost)), default=None)
        best = at_cost(start if near is None else found[near], noise_schedule, cost)
        if best is None:  # not even one step of it: the same without guidance, if that has one
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


def rounds_of(images: int) -> tuple[int, ...]:
    """Pictures in each round of a choice, ascending."""
    return tuple(sorted({max(2, images // part) for part in (4, 2, 1)}))


def stages(
    config: Config, noise_schedule: NoiseSchedule, cost: int, near: bool
) -> Iterator[Candidates]:
    """For each choice what to try, given the best so far (which comes first).

    Args:
        near: only neighbours of the values that are good at a cost nearby.
    """

    def settle(key: str, values: Callable[[SamplingConfig], Sequence[Any]]) -> Candidates:
        def candidates(best: SamplingConfig) -> list[SamplingConfig]:
            tried = [best]
            if best.guidance_scale == 1 and key in ("guidance_interval", "guidance_type"):
                return tried  # they change nothing
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
    """The setting with one thing changed. A scale is tried at all noise levels and in the middle,
    for what is too much at all of them may be best there."""
    if key != "guidance_scale":
        yield best.model_copy(update={key: value})
    elif value == 1:  # in one form, for no interval or formula makes a difference to it
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
        rounds: pictures, ascending. After each round the better half stays, and of that only what
            is not clearly worse than the best.
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
    """The setting with as many steps as fit into so many evaluations; None if not one does."""

    def evaluations(steps: int) -> int:
        return function_evaluations(
            sampling.model_copy(update={"num_inference_steps": steps}), noise_schedule
        )

    free = sampling.zero_init_steps
    most = min(cost + free, getattr(noise_schedule, "num_train_timesteps", cost))
    if most <= free:
        return None
    # Evaluations grow nearly in proportion to steps: begin a little above where they would fit.
    steps = min(most, free + math.ceil((most - free) * cost / max(1, evaluations(most))) + 2)
    while steps > free and evaluations(steps) > cost:
        steps -= 1
    if steps <= free:
        return None
    return sampling.model_copy(update={"num_inference_steps": steps})


def _fits(config: Config, sampling: SamplingConfig) -> bool:
    return not list(sampling_problems(config.model_copy(update={"sampling": sampling})))
