"""How far apart two sets of pictures are, by a kernel on their features."""

from __future__ import annotations

from torch import Tensor

from limner.errors import LimnerError


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Squared maximum mean discrepancy with the cubic kernel (x . y / d + 1)^3, unbiased.

    What the Kernel Inception Distance is for Inception features (Binkowski et al. 2018, arXiv
    1801.01401, equation 4); about 0, and by chance below it, for two samples of one distribution,
    whatever their number.

    Args:
        a, b: features [N, d] and [M, d], at least two of each.
    """
    if len(a) < 2 or len(b) < 2:
        raise LimnerError(
            f"a kernel distance needs two pictures of each set; got {len(a)}, {len(b)}"
        )
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def without_itself(x: Tensor) -> Tensor:
        values = kernel(x, x)
        return (values.sum() - values.diagonal().sum()) / (len(x) * (len(x) - 1))

    return float(without_itself(a) + without_itself(b) - 2 * kernel(a, b).mean())
