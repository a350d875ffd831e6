"""Residual noise in generated images: the standard deviation in flat regions.

Recall and kernel distance are blind to speckle: a model that never removes all noise still reaches
100 % recall at 16 x 16 pixels. Noise shows in a sky, a wall, or an empty background; the same
regions of real images are the baseline.
"""

from __future__ import annotations

from torch import Tensor

BLOCKS = 8
"""Blocks along each side: two patches wide each if an image has 16 x 16 tokens, so that steps
between neighbouring patches count too."""
FLATTEST = 0.05
"""Quantile of the block deviations that is reported: low enough that texture does not count, high
enough that a single block does not decide."""


def flat_region_std(images: Tensor) -> Tensor:
    """The standard deviation in the flattest regions of each image, on a scale of 0 to 255.

    Args:
        images: uint8 [N, H, W, 3], each side at least 8 pixels.

    Returns:
        float32 [N]: the 5th percentile of the standard deviations of 8 x 8 blocks (root mean
        square over the colours); 0 is flat colour. Pixels beyond whole blocks are ignored.
    """
    n, height, width, _ = images.shape
    high, wide = height // BLOCKS, width // BLOCKS
    whole = images[:, : high * BLOCKS, : wide * BLOCKS].float()
    blocks = whole.reshape(n, BLOCKS, high, BLOCKS, wide, 3).permute(0, 1, 3, 2, 4, 5)
    variance = blocks.reshape(n, BLOCKS**2, high * wide, 3).var(dim=2, unbiased=False)
    return variance.mean(dim=2).sqrt().quantile(FLATTEST, dim=1)
