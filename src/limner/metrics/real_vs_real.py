"""The real-vs-real baseline of a distance: real images in place of the generated ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from limner.errors import LimnerError
from limner.metrics.interval import Measured

Distance = Callable[[Tensor, Tensor], Measured | float]


@dataclass(frozen=True)
class Floor:
    """The real-vs-real baseline: what a perfect generator is expected to score.

    Attributes:
        value: mean of `values`.
        values: one for each random split.
        counts: sizes of the two sets of real images, in place of generated and reference images.
        notes: caveats to show next to the number.
    """

    value: float
    values: tuple[float, ...]
    counts: tuple[int, int]
    notes: tuple[str, ...] = ()


def floor(
    distance: Distance,
    real: Tensor,
    held_out: Tensor | None = None,
    counts: tuple[int, int] | None = None,
    repeats: int = 3,
    seed: int = 0,
) -> Floor:
    """The real-vs-real baseline: the distance between two sets of real images.

    Args:
        distance: called with the features in place of the generated images and those of the
            reference; returns a number or a `Measured`.
        real: features of the reference [N, d].
        held_out: features of other real images [M, d], in place of the generated ones. None: `real`
            is split at random into two disjoint sets.
        counts: numbers of generated and reference images in the comparison that this is the
            baseline for. None: all of `held_out` and `real`, or two halves. If there are fewer real
            images, all are used and a note says so.
        repeats: number of random splits, if more than one is possible.
        seed: of the splits.

    Raises:
        LimnerError: too few images for two sets of two.
    """
    total = len(real)
    most = (len(held_out), total) if held_out is not None else (total // 2, total - total // 2)
    first, second = most if counts is None else counts
    if held_out is not None:
        used = min(first, most[0]), min(second, total)
    else:
        used = min(first, most[0]), min(second, total - min(first, most[0]))
    if min(used) < 2:
        raise LimnerError(
            f"the real-vs-real baseline requires two sets of at least two images; got {total}"
            + (f" and {len(held_out)} held out" if held_out is not None else "")
        )
    notes = []
    if used != (first, second):
        notes.append(
            f"only {used[0]:,} and {used[1]:,} real images instead of {first:,} and {second:,}: "
            "this baseline is too high for a metric that is biased at small sample sizes"
        )
    if held_out is not None and used == (len(held_out), total):
        repeats = 1  # every split would be the same
    random = np.random.default_rng(seed)
    values = []
    for _ in range(repeats):
        order = torch.from_numpy(random.permutation(total)).to(real.device)
        if held_out is None:
            pair = real[order[: used[0]]], real[order[used[0] : used[0] + used[1]]]
        else:
            others = torch.from_numpy(random.permutation(len(held_out))).to(held_out.device)
            pair = held_out[others[: used[0]]], real[order[: used[1]]]
        found = distance(*pair)
        values.append(found.value if isinstance(found, Measured) else float(found))
    return Floor(float(np.mean(values)), tuple(values), used, tuple(notes))
