"""Measurements of sampling settings, and whether differences between them are significant.

All settings use the same prompts and the same noise (common random numbers), so most of the
randomness cancels in differences. The rest is estimated by the delete-a-group jackknife (Kott 2001)
over groups of prompts, applied to both settings at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from limner.config import SamplingConfig

CLEARLY = 2.0
"""A setting whose prompt following is worse by more standard errors than this is excluded."""
WITHIN = 1.0
"""Within this many standard errors the cheaper setting wins: the one-standard-error rule (Breiman
et al. 1984, section 3.4.3)."""


@dataclass(frozen=True)
class Measurement:
    """The measurement of one setting.

    Attributes:
        sampling: the setting.
        cost: function evaluations per image; a guided step counts twice.
        count: number of generated images.
        distance: kernel distance between generated images and the real images of their captions,
            lower is better; None without a feature extractor.
        match: prompt following, 0 to 1; None if it cannot be measured.
        right: the fraction that is fully correct (recall@1); None likewise.
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
    """Standard error of the difference of two estimates, from their leave-one-group-out values."""
    difference = np.subtract(a, b)
    groups = len(difference)
    if groups < 2:
        return 0.0
    spread = np.square(difference - difference.mean()).sum()
    return float(np.sqrt((groups - 1) / groups * spread))


def following(found: Sequence[Measurement]) -> list[Measurement]:
    """Settings whose prompt following is not significantly worse than the best.

    A set of images can match the distribution of real images although each belongs to another
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
    """Best first: those in `following` by distance, then the others. All must have the same count.

    Without a distance, by prompt following. If all is equal, the cheaper first.
    """
    keep = following(found)

    def rank(m: Measurement) -> tuple[bool, float, float, int]:
        distance = 0.0 if m.distance is None else m.distance
        return m not in keep, distance, -(m.match or 0.0), m.cost

    return sorted(found, key=rank)


def within_noise(found: Sequence[Measurement], errors: float = WITHIN) -> list[Measurement]:
    """The best, and those in `following` that are at most `errors` standard errors worse."""
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
    """The cheapest within noise of the best; at equal cost, the better one."""
    return min(by_quality(within_noise(found)), key=lambda m: m.cost)
