"""The lower bound of a distance: real against real pictures, with as many samples as generated."""

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
    """What a perfect generator would score, by chance and by the metric's bias.

    Attributes:
        value: mean of `values`.
        values: one for each way of drawing the two sets.
        counts: real pictures in the place of drawn ones, and real ones that they are compared with.
        notes: sentences that belong beside the number.
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
    """The distance between two sets of real pictures.

    Args:
        distance: takes features in the place of the drawn, and those of the reference; returns a
            number, or one that is `Measured`.
        real: features of the reference [N, d].
        held_out: of other real pictures [M, d], which take the place of drawn ones. None: `real` is
            cut into two disjoint parts at random.
        counts: drawn pictures and reference pictures of the comparison that the floor is for. None:
            all of `held_out` and `real`, or two halves. What `real` cannot give is less, and a note
            says so.
        repeats: ways of drawing, where there is more than one.
        seed: of the drawing.

    Raises:
        LimnerError: too few pictures for two sets of two.
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
            f"a floor needs two real pictures on each side; there are {total}"
            + (f" and {len(held_out)} held out" if held_out is not None else "")
        )
    notes = []
    if used != (first, second):
        notes.append(
            f"{used[0]:,} against {used[1]:,} real pictures, for want of {first:,} and {second:,}: "
            "a distance that is biased at small counts has a higher floor here than there"
        )
    if held_out is not None and used == (len(held_out), total):
        repeats = 1  # there is one way only
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
