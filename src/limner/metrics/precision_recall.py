"""Improved precision and recall: fidelity and coverage of generated images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limner.errors import LimnerError
from limner.metrics.interval import Measured, share

BLOCK_BYTES = 2**25
"""Of distances in memory at a time."""
CONDITION = "the interval covers the sampling of the {which}, not of the other set's neighbourhoods"


@dataclass(frozen=True)
class PrecisionRecall:
    """Both in [0, 1]."""

    precision: Measured
    """Fidelity: the fraction of generated images within the neighbourhoods of real images."""
    recall: Measured
    """Diversity: the fraction of real images within the neighbourhoods of generated images."""


def precision_recall(real: Tensor, drawn: Tensor, k: int = 3) -> PrecisionRecall:
    """Kynkaanniemi et al. 2019 (arXiv 1904.06991), equations 1 and 2.

    The manifold of a set is the union of balls around its features; the radius is the distance to
    the k-th nearest neighbour within the set. Distances are computed in float64, in blocks of
    bounded memory, on the device of the features; the published code uses float16 or float32.

    Both numbers depend on the sizes of both sets: compare them only at equal sizes.

    Args:
        real, drawn: features [N, d] and [M, d], more than `k` of each.

    Raises:
        LimnerError: too few images, or features of different widths.
    """
    if min(len(real), len(drawn)) <= k:
        raise LimnerError(
            f"precision and recall with k = {k} require more than {k} images in each set; got "
            f"{len(real)} and {len(drawn)}"
        )
    if real.shape[1] != drawn.shape[1]:
        raise LimnerError(
            f"features of width {real.shape[1]} and {drawn.shape[1]} come from different feature "
            "extractors"
        )
    centre = real.double().mean(dim=0)  # centred features have less rounding error
    real, drawn = real.double() - centre, drawn.double() - centre
    radii_real, radii_drawn = neighbourhoods(real, k), neighbourhoods(drawn, k)
    covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    within = []
    rows = _rows(len(real))
    for part, radii in zip(drawn.split(rows), radii_drawn.split(rows), strict=True):
        squares = _squared_distances(part, real)
        within.append((squares <= radii_real).any(dim=1))
        covered |= (squares <= radii[:, None]).any(dim=0)
    precise = int(torch.cat(within).sum())
    condition = [CONDITION.format(which=f"{name} images") for name in ("generated", "real")]
    return PrecisionRecall(
        share(precise, len(drawn), (condition[0],)),
        share(int(covered.sum()), len(real), (condition[1],)),
    )


def neighbourhoods(features: Tensor, k: int) -> Tensor:
    """Squared distance of each feature [N, d] to its k-th nearest neighbour, float64 [N]."""
    found = []
    for part in features.split(_rows(len(features))):
        squares = _squared_distances(part, features)
        found.append(squares.topk(k + 1, dim=1, largest=False).values[:, k])  # itself is nearest
    return torch.cat(found)


def _rows(columns: int) -> int:
    return max(1, BLOCK_BYTES // (8 * columns))


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """[N, d] and [M, d] -> [N, M]."""
    lengths = x.square().sum(1)[:, None] + y.square().sum(1)[None]
    return (lengths - 2 * x @ y.T).clamp(min=0)
