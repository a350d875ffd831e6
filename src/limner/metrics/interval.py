"""A measured value with its confidence interval and notes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NORMAL_95 = 1.959964
"""Standard errors to each side that hold 95 % of a normal distribution."""


@dataclass(frozen=True)
class Measured:
    """One number; plain values only, so that `dataclasses.asdict` of it is JSON.

    Attributes:
        value: the number.
        interval: 95 % confidence interval, or None where the metric allows none.
        interval_by: how the interval was made, or why there is none.
        std: over subsets or splits, where the metric's convention reports one beside the mean. It
            is not the uncertainty of the value.
        notes: sentences that belong beside the number wherever it is shown.
    """

    value: float
    interval: tuple[float, float] | None = None
    interval_by: str = ""
    std: float | None = None
    notes: tuple[str, ...] = ()


def normal_interval(value: float, error: float) -> tuple[float, float]:
    """95 % of a normal distribution around `value` with the standard error `error`."""
    return value - NORMAL_95 * error, value + NORMAL_95 * error


def interval_of_difference(a: Measured, b: Measured) -> tuple[float, float] | None:
    """95 % interval of a - b from the intervals of the two, where both have one.

    Zou & Donner 2008 ("Construction of confidence limits about effect measures"), which for shares
    is Newcombe's tenth method (1998). It takes the two as independent: of the same prompts and
    seeds they vary together, so it is wide rather than narrow.
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

    A bootstrap of 39 of 39 would say that nothing but 100 % is possible; this says 91 % to 100 %.
    """
    if count == 0:
        return Measured(math.nan, None, "nothing was counted", notes=notes)
    found = right / count
    return Measured(found, wilson(found, count), "Wilson's interval for a share", notes=notes)


def wilson(found: float, count: int) -> tuple[float, float]:
    """95 % score interval of a share that was found among `count` (Wilson, JASA 22, 1927)."""
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
    """The mean, with the interval between the 2.5 % and 97.5 % points of resampled means.

    Efron 1979, percentile method.

    Args:
        values: [N].
        groups: for each value what it belongs to, such as its prompt. Values of one group are
            alike, so whole groups are resampled; None: each value is its own group.
        seed: of the resampling: the same values and seed give the same interval.
    """
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean()) if len(values) else math.nan
    labels: dict[object, int] = {}
    for group in range(len(values)) if groups is None else groups:
        labels.setdefault(group, len(labels))
    if len(labels) < 2:
        return Measured(mean, None, "none: it takes two prompts or more", notes=notes)
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
    what = "pictures" if groups is None else f"the {len(sums)} prompts"
    how = f"bootstrap over {what}, {resamples} resamples, seed {seed}"
    return Measured(mean, (float(low), float(high)), how, notes=notes)
