"""The Frechet distance between two sets of features: FID, FD-DINOv2, and the like."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limner.errors import LimnerError
from limner.metrics.interval import Measured

BLOCK = 4096
NO_INTERVAL = (
    "none: the distance is biased at finite sample size, and resampling with replacement biases it "
    "further"
)
ENOUGH = 50_000
"""Sample size of published tables; with fewer images the bias also depends on the model (Chong &
Forsyth 2020, arXiv 1911.07023)."""


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of a set of features.

    Attributes:
        mean: float64 [d].
        covariance: float64 [d, d], with N - 1 in the denominator.
        count: number of images; None if a published file does not record it.
    """

    mean: Tensor
    covariance: Tensor
    count: int | None

    @classmethod
    def of(cls, features: Tensor) -> Gaussian:
        """Fit features [N, d], N at least two, in float64. Raises LimnerError."""
        count = len(features)
        if count < 2:
            raise LimnerError(f"a covariance requires at least two images; got {count}")
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

    The trace of the square root of the product is the sum of the square roots of its eigenvalues,
    which equal those of the symmetric C_a^(1/2) C_b C_a^(1/2). This avoids a general matrix square
    root, complex numbers, and a constant added to the diagonal of a singular matrix.

    Raises:
        LimnerError: the features have different widths, or contain NaN or infinite values.
    """
    if a.mean.shape != b.mean.shape:
        raise LimnerError(
            f"features of width {len(a.mean)} and {len(b.mean)} come from different feature "
            "extractors"
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
    expects."""
    return frechet_distance(Gaussian.of(a), Gaussian.of(b))


def _notes(a: Gaussian, b: Gaussian) -> tuple[str, ...]:
    """What the sample sizes mean for the distance."""
    counts = [each.count for each in (a, b) if each.count is not None]
    if not counts:
        return ()
    fewest, width = min(counts), len(a.mean)
    if fewest <= width:
        return (
            f"{fewest:,} images and {width:,} features: the covariance is singular, and the "
            "distance mostly reflects the number of images; compare it only with the real-vs-real "
            "baseline at the same number",
        )
    if fewest < ENOUGH:
        return (
            f"measured on {fewest:,} images: the distance is biased upwards, the more the fewer "
            f"images; do not compare it with values on {ENOUGH:,}",
        )
    return ()
