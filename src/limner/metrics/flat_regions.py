"""Residual noise in generated pictures: the standard deviation in flat regions.

Recall and kernel distance look at pictures from a distance at which speckle is not seen: a model
that never loses its noise has 100 % recall at 16 x 16 pixels. A sky, a wall, or an empty background
shows it, and what real pictures have there says how much is right.
"""

from __future__ import annotations

from torch import Tensor

BLOCKS = 8
"""Blocks along each side, each two patches wide where a picture has 16 x 16 tokens, so that patches
that do not meet count, too."""
FLATTEST = 0.05
"""Share of a picture's blocks that is flatter than the one which is reported: a drawing without any
flat ground has no say with its texture, nor has a single block by chance."""


def flat_region_std(images: Tensor) -> Tensor:
    """The standard deviation within the flattest parts of each picture, in units of 0 to 255.

    Args:
        images: uint8 [N, H, W, 3], each side at least 8 pixels.

    Returns:
        float32 [N]: of 8 x 8 blocks the 5th percentile of their standard deviations (root mean
        square over colours); 0 is flat colour. Pixels beyond whole blocks are left out.
    """
    n, height, width, _ = images.shape
    high, wide = height // BLOCKS, width // BLOCKS
    whole = images[:, : high * BLOCKS, : wide * BLOCKS].float()
    blocks = whole.reshape(n, BLOCKS, high, BLOCKS, wide, 3).permute(0, 1, 3, 2, 4, 5)
    variance = blocks.reshape(n, BLOCKS**2, high * wide, 3).var(dim=2, unbiased=False)
    return variance.mean(dim=2).sqrt().quantile(FLATTEST, dim=1)
