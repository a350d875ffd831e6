"""The Frechet distance between two sets of features: FID, FD-DINOv2, and the like."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limner.errors import LimnerError
from limner.metrics.interval import Measured

BLOCK = 4096
NO_INTERVAL = (
    "none: the distance is biased by the number of pictures, and pictures drawn twice by a "
    "bootstrap bias it more"
)
ENOUGH = 50_000
"""Pictures that tables are made with; the bias of fewer depends on the model, too (Chong & Forsyth
2020, arXiv 1911.07023)."""


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of a set of features.

    Attributes:
        mean: float64 [d].
        covariance: float64 [d, d], with N - 1 in the denominator.
        count: pictures that they were made of; None where a published file does not say.
    """

    mean: Tensor
    covariance: Tensor
    count: int | None

    @classmethod
    def of(cls, features: Tensor) -> Gaussian:
        """Of features [N, d], N at least two; sums in float64. Raises LimnerError."""
        count = len(features)
        if count < 2:
            raise LimnerError(f"a covariance needs two pictures; got {count}")
        mean = sum(part.double().sum(dim=0) for part in features.split(BLOCK)) / count
        assert isinstance(mean, Tensor)
        squares = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=features.device)
        for part in features.split(BLOCK):
            centred = part.double() - mean
            squares += centred.T @ centred
        return cls(mean, squares / (count - 1), count)


def frechet_distance(a: Gaussian, b: Gaussian) -> Measured:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

    Heusel et al. 2017 (arXiv 1706.08500, equation 6), after Dowson & Landau 1982.

    The trace of the root of the product is the sum of the roots of its eigenvalues, which are those
    of the symmetric C_a^(1/2) C_b C_a^(1/2); so no general matrix root is taken, nothing complex
    comes up, and nothing is added to the diagonal of a singular matrix.

    Raises:
        LimnerError: the two are of different networks, or hold numbers that are none.
    """
    if a.mean.shape != b.mean.shape:
        raise LimnerError(
            f"features of width {len(a.mean)} and {len(b.mean)} are of different networks"
        )
    for each in (a, b):
        if not (torch.isfinite(each.mean).all() and torch.isfinite(each.covariance).all()):
            raise LimnerError(
                "the mean or covariance of the features contains NaN or infinite values"
            )
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ b.covariance @ root
    roots = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    spread = a.covariance.trace() + b.covariance.trace() - 2 * roots
    value = float((a.mean - b.mean).square().sum() + spread)
    return Measured(max(0.0, value), None, NO_INTERVAL, notes=_notes(a, b))


def frechet_distance_of(a: Tensor, b: Tensor) -> Measured:
    """`frechet_distance` of two sets of features [N, d] and [M, d], with the signature that `floor`
    calls."""
    return frechet_distance(Gaussian.of(a), Gaussian.of(b))


def _notes(a: Gaussian, b: Gaussian) -> tuple[str, ...]:
    """What the counts mean for the number."""
    counts = [each.count for each in (a, b) if each.count is not None]
    if not counts:
        return ()
    fewest, width = min(counts), len(a.mean)
    if fewest <= width:
        return (
            f"{fewest:,} pictures and {width:,} features: a covariance is singular, and the number "
            "of pictures makes most of the distance; compare it only with the floor at the same "
            "number",
        )
    if fewest < ENOUGH:
        return (
            f"made with {fewest:,} pictures: the distance is biased upwards, more so the fewer; "
            f"not to be compared with figures of {ENOUGH:,}",
        )
    return ()
