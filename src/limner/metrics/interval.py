"""A measured value with its confidence interval and notes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NORMAL_95 = 1.959964
"""A normal distribution has 95 % of its mass within this many standard deviations."""


@dataclass(frozen=True)
class Measured:
    """One measured number. Holds plain values only, so `dataclasses.asdict` gives JSON.

    Attributes:
        value: the number.
        interval: 95 % confidence interval, or None if the metric has none.
        interval_by: how the interval was computed, or why there is none.
        std: over subsets or splits, if the metric is conventionally reported with one. It is not
            the uncertainty of the value.
        notes: caveats to show next to the number.
    """

    value: float
    interval: tuple[float, float] | None = None
    interval_by: str = ""
    std: float | None = None
    notes: tuple[str, ...] = ()


def normal_interval(value: float, error: float) -> tuple[float, float]:
    """95 % confidence interval of a normally distributed `value` with standard error `error`."""
    return value - NORMAL_95 * error, value + NORMAL_95 * error


def interval_of_difference(a: Measured, b: Measured) -> tuple[float, float] | None:
    """95 % confidence interval of a - b from the intervals of both; None if one has none.

    Zou & Donner 2008 ("Construction of confidence limits about effect measures"), which for
    proportions is Newcombe's tenth method (1998). It assumes that the two are independent: with the
    same prompts and seeds they are correlated, so the interval is too wide rather than too narrow.
    """
    if a.interval is None or b.interval is None:
        return None
    (low_a, high_a), (low_b, high_b) = a.interval, b.interval
    difference = a.value - b.value
    return (
        difference - math.hypot(a.value - low_a, high_b - b.value),
        difference + math.hypot(high_a - a.value, b.value - low_b),
    )


def share(right: int, count: int, notes: tuple[str, ...] = ()) -> Measured:
    """`right` of `count`, with Wilson's score interval (1927), which also works if all are right.

    For 39 of 39, a bootstrap would give 100 % to 100 %; Wilson's interval is 91 % to 100 %.
    """
    if count == 0:
        return Measured(math.nan, None, "none: the sample is empty", notes=notes)
    found = right / count
    return Measured(found, wilson(found, count), "Wilson score interval", notes=notes)


def wilson(found: float, count: int) -> tuple[float, float]:
    """95 % score interval of the proportion `found` of `count` (Wilson, JASA 22, 1927)."""
    z2 = NORMAL_95**2
    scale = 1 + z2 / count
    centre = (found + z2 / (2 * count)) / scale
    half = NORMAL_95 * math.sqrt(found * (1 - found) / count + z2 / (4 * count**2)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrapped_mean(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[object] | None = None,
    seed: int = 0,
    resamples: int = 2000,
    notes: tuple[str, ...] = (),
) -> Measured:
    """The mean, with a 95 % bootstrap confidence interval (Efron 1979, percentile method).

    Args:
        values: [N].
        groups: the group of each value, such as its prompt. Values within a group are correlated,
            so whole groups are resampled. None: each value is its own group.
        seed: of the resampling; the same values and seed give the same interval.
    """
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean()) if len(values) else math.nan
    labels: dict[object, int] = {}
    for group in range(len(values)) if groups is None else groups:
        labels.setdefault(group, len(labels))
    if len(labels) < 2:
        return Measured(mean, None, "none: it requires at least two prompts", notes=notes)
    if groups is None:
        member = np.arange(len(values))
    else:
        member = np.array([labels[group] for group in groups])
    sums, counts = np.bincount(member, values), np.bincount(member)
    random = np.random.default_rng(seed)
    means = np.empty(resamples)
    for i in range(resamples):
        chosen = random.integers(len(sums), size=len(sums))
        means[i] = sums[chosen].sum() / counts[chosen].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    what = "images" if groups is None else f"the {len(sums)} prompts"
    how = f"bootstrap over {what}, {resamples} resamples, seed {seed}"
    return Measured(mean, (float(low), float(high)), how, notes=notes)
