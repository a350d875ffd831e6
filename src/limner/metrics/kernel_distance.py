"""Kernel distances (MMD) between two sets of features: KID and CMMD.

Both are a squared maximum mean discrepancy (Gretton et al. 2012, JMLR 13): the mean of a kernel
over pairs within each set, less twice the mean over pairs across the sets. Sums are in float64, in
blocks of bounded memory, on the device of the features (not on MPS, which lacks float64).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from limner.errors import LimnerError
from limner.metrics.interval import Measured, normal_interval

BLOCK_BYTES = 2**25
"""Of kernel values in memory at a time."""
CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
JACKKNIFE = "jackknife over the images of both sets (conservative if the sets are alike)"

Kernel = Callable[[Tensor, Tensor], Tensor]


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Squared maximum mean discrepancy with the cubic kernel (x . y / d + 1)^3, unbiased.

    On Inception features this is the Kernel Inception Distance (Binkowski et al. 2018, arXiv
    1801.01401, equation 4). For two samples of one distribution its expectation is 0 at any sample
    size, so it can be negative.

    Args:
        a, b: features [N, d] and [M, d], at least two of each.

    Raises:
        LimnerError: a set has fewer than two features, or the widths differ.
    """
    return Discrepancy.of(a, b, cubic).unbiased()


def measure_kernel_distance(a: Tensor, b: Tensor) -> Measured:
    """`kernel_distance` over all images, with a 95 % confidence interval.

    The cost is quadratic in the number of images: on a CPU, 10,000 of each take seconds, 50,000
    take minutes; use `kernel_distance_over_subsets` for those. Raises LimnerError.
    """
    found = Discrepancy.of(a, b, cubic)
    return _measured(found.unbiased(), found.interval(biased=False))


def kernel_distance_over_subsets(
    a: Tensor, b: Tensor, subsets: int = 100, size: int = 1000, seed: int = 0
) -> Measured:
    """KID as published tables report it: mean and standard deviation over random subsets.

    The mean estimates the same quantity as `kernel_distance` over all images, less precisely. The
    standard deviation depends on the subset size, not on the number of images, so it is not the
    uncertainty of the mean.

    Args:
        a, b: features [N, d] and [M, d].
        subsets, size: Binkowski's code uses 100 subsets of 1000, sampled without replacement.
        seed: of the sampling.

    Raises:
        LimnerError: a set has fewer images than a subset.
    """
    if min(len(a), len(b)) < size:
        raise LimnerError(
            f"cannot sample subsets of {size} from sets of {len(a)} and {len(b)} images; use "
            f"subsets of at most {min(len(a), len(b))}, or the distance over all images"
        )
    random = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        some = [
            features[torch.from_numpy(random.permutation(len(features))[:size]).to(features.device)]
            for features in (a, b)
        ]
        values.append(kernel_distance(some[0], some[1]))
    return Measured(
        float(np.mean(values)),
        None,
        "none: the standard deviation is over subsets",
        std=float(np.std(values)),
        notes=(
            f"mean and standard deviation over {subsets} subsets of {size} images, seed {seed}",
        ),
    )


def cmmd(a: Tensor, b: Tensor, biased: bool = True) -> Measured:
    """CMMD: 1000 times the squared MMD of CLIP embeddings with a Gaussian kernel.

    Jayasumana et al. 2024 (arXiv 2401.09603, section 4, sigma = 10). The published code also pairs
    each image with itself (`biased`), which is negligible for 30,000 images but not for a few
    hundred; a note gives the other value.

    Args:
        a, b: embeddings of unit norm, [N, d] and [M, d], at least two of each.

    Raises:
        LimnerError: as for `kernel_distance`, or the embeddings do not have unit norm.
    """
    for embeddings in (a, b):
        if len(embeddings) and (embeddings.norm(dim=1) - 1).abs().max() > 1e-2:
            raise LimnerError("CMMD requires embeddings of unit norm; normalise them first")
    found = Discrepancy.of(a, b, gaussian)
    unbiased, published = CMMD_SCALE * found.unbiased(), CMMD_SCALE * found.biased()
    value = published if biased else unbiased
    notes = (
        f"as published, with each image also paired with itself; without those pairs "
        f"{unbiased:.4g}",
        "without the pairs of an image with itself, which the published code includes; with them "
        f"{published:.4g}",
    )
    interval = found.interval(biased)
    if interval is not None:
        interval = CMMD_SCALE * interval[0], CMMD_SCALE * interval[1]
    return _measured(value, interval, (notes[0 if biased else 1],))


def _measured(
    value: float, interval: tuple[float, float] | None, notes: tuple[str, ...] = ()
) -> Measured:
    how = JACKKNIFE if interval else "none: it requires at least three images in each set"
    return Measured(value, interval, how, notes=notes)


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """(x . y / d + 1)^3."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(x: Tensor, y: Tensor) -> Tensor:
    """exp(-|x - y|^2 / (2 sigma^2))."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * x @ y.T
    return torch.exp(-squares.clamp(min=0) / (2 * CMMD_SIGMA**2))


@dataclass(frozen=True)
class Discrepancy:
    """Kernel sums, from which both estimates and their errors follow.

    Attributes (float64): `within_a` [N], each image of `a` with all of `a`; `self_a` [N], with
        itself; `across_a` [N], with all of `b`; and the same for the M images of `b`.
    """

    within_a: Tensor
    self_a: Tensor
    across_a: Tensor
    within_b: Tensor
    self_b: Tensor
    across_b: Tensor

    @classmethod
    def of(cls, a: Tensor, b: Tensor, kernel: Kernel) -> Discrepancy:
        if len(a) < 2 or len(b) < 2:
            raise LimnerError(
                f"a kernel distance requires at least two images in each set; got {len(a)} and "
                f"{len(b)}"
            )
        if a.shape[1] != b.shape[1]:
            raise LimnerError(
                f"features of width {a.shape[1]} and {b.shape[1]} come from different feature "
                "extractors"
            )
        a, b = a.double(), b.double()
        within_a, self_a = _row_sums(a, a, kernel)[0], _with_themselves(a, kernel)
        within_b, self_b = _row_sums(b, b, kernel)[0], _with_themselves(b, kernel)
        across_a, across_b = _row_sums(a, b, kernel)
        return cls(within_a, self_a, across_a, within_b, self_b, across_b)

    def unbiased(self) -> float:
        """Gretton et al. 2012, equation 3: without the pairs of an image with itself."""
        n, m = len(self.within_a), len(self.within_b)
        a = (self.within_a - self.self_a).sum() / (n * (n - 1))
        b = (self.within_b - self.self_b).sum() / (m * (m - 1))
        return float(a + b - 2 * self.across_a.sum() / (n * m))

    def biased(self) -> float:
        """Equation 5: all pairs."""
        n, m = len(self.within_a), len(self.within_b)
        within = self.within_a.sum() / n**2 + self.within_b.sum() / m**2
        return float(within - 2 * self.across_a.sum() / (n * m))

    def interval(self, biased: bool) -> tuple[float, float] | None:
        """95 % confidence interval from the delete-one jackknife (Arvesen 1969).

        A bootstrap samples images more than once, and the kernel of an image with its copy is that
        with itself, which the unbiased estimate excludes on purpose. For two alike sets the
        jackknife overstates the error (Efron & Stein 1981). In simulations with normal features,
        coverage was 91 to 94 % for 150 images and 87 to 98 % for 30. None for fewer than three.
        """
        variance = 0.0
        for within, own, across in (
            (self.within_a, self.self_a, self.across_a),
            (self.within_b, self.self_b, self.across_b),
        ):
            n, m = len(within), len(self.within_a) + len(self.within_b) - len(within)
            if n < 3:
                return None
            # The estimate without image i, up to terms that do not depend on i.
            pairs = within.sum() - 2 * within + own
            if biased:
                inside = pairs / (n - 1) ** 2
            else:
                inside = (pairs - (own.sum() - own)) / ((n - 1) * (n - 2))
            without = inside - 2 * (across.sum() - across) / ((n - 1) * m)
            variance += (n - 1) / n * float((without - without.mean()).square().sum())
        estimate = self.biased() if biased else self.unbiased()
        return normal_interval(estimate, variance**0.5)


def _row_sums(x: Tensor, y: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Sums of the kernel over y for each x, and over x for each y."""
    rows = max(1, BLOCK_BYTES // (8 * len(y)))
    over_y, over_x = [], torch.zeros(len(y), dtype=torch.float64, device=y.device)
    for part in x.split(rows):
        values = kernel(part, y)
        over_y.append(values.sum(dim=1))
        over_x += values.sum(dim=0)
    return torch.cat(over_y), over_x


def _with_themselves(x: Tensor, kernel: Kernel) -> Tensor:
    parts = [kernel(part, part).diagonal().clone() for part in x.split(256)]
    return torch.cat(parts)
