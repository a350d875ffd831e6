"""How good pictures of one setting are, and whether another setting's are better by more than
chance.

All settings draw the same prompts from the same noise (common random numbers), so that most of what
is chance in a distance is the same chance for all of them and falls out of their difference. How
much is left is estimated by leaving out groups of prompts (the delete-a-group jackknife, Kott 2001)
of both at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from limner.config import SamplingConfig

CLEARLY = 2.0
"""Standard errors by which a setting must follow the captions worse than another to be left out."""
WITHIN = 1.0
"""Standard errors within which the cheaper of two is taken: the one-standard-error rule (Breiman et
al. 1984, section 3.4.3)."""


@dataclass(frozen=True)
class Measurement:
    """What was found for one setting.

    Attributes:
        sampling: the setting.
        cost: network evaluations for one picture; a guided step counts twice.
        count: pictures drawn.
        distance: kernel distance of the drawn pictures from the real ones of their captions, lower
            is better; None without the network that it takes.
        match: how well pictures follow their captions, 0 to 1; None where nothing can tell.
        right: the share that follows fully (recall at 1); None likewise.
        distance_without, match_without: the same without each group of prompts in turn.
    """

    sampling: SamplingConfig
    cost: int
    count: int
    distance: float | None
    match: float | None
    right: float | None = None
    distance_without: tuple[float, ...] = ()
    match_without: tuple[float, ...] = ()


def jackknife_error(a: Sequence[float], b: Sequence[float]) -> float:
    """Standard error of the difference of two estimates, from both without each of the groups."""
    difference = np.subtract(a, b)
    groups = len(difference)
    if groups < 2:
        return 0.0
    spread = np.square(difference - difference.mean()).sum()
    return float(np.sqrt((groups - 1) / groups * spread))


def following(found: Sequence[Measurement]) -> list[Measurement]:
    """Those that do not clearly follow the captions worse than the one that follows them best.

    A set of pictures can be at no distance from the real ones although each belongs to another
    caption, so the distance alone would choose weak guidance too often.
    """
    told = [m for m in found if m.match is not None]
    if not told:
        return list(found)
    top = max(told, key=lambda m: m.match or 0.0)
    assert top.match is not None
    return [
        m
        for m in told
        if m.match is not None
        and top.match - m.match
        <= CLEARLY * jackknife_error(top.match_without, m.match_without) + 1e-12
    ]


def by_quality(found: Sequence[Measurement]) -> list[Measurement]:
    """Best first: those that follow the captions by distance, then the others. All of one count.

    Where there is no distance, by how well they follow. The cheaper first where all is equal.
    """
    keep = following(found)

    def rank(m: Measurement) -> tuple[bool, float, float, int]:
        distance = 0.0 if m.distance is None else m.distance
        return m not in keep, distance, -(m.match or 0.0), m.cost

    return sorted(found, key=rank)


def within_noise(found: Sequence[Measurement], errors: float = WITHIN) -> list[Measurement]:
    """The best, and those that follow the captions and are no more than so many standard errors
    worse than it."""
    best = by_quality(found)[0]
    keep = [best]
    for m in following(found):
        if m is best:
            continue
        if best.distance is None or m.distance is None:
            worse = (best.match or 0.0) - (m.match or 0.0)
            error = jackknife_error(best.match_without, m.match_without)
        else:
            worse = m.distance - best.distance
            error = jackknife_error(m.distance_without, best.distance_without)
        if worse <= errors * error + 1e-12:
            keep.append(m)
    return keep


def cheapest(found: Sequence[Measurement]) -> Measurement:
    """The cheapest of those within noise of the best; of equal costs, the better."""
    return min(by_quality(within_noise(found)), key=lambda m: m.cost)
