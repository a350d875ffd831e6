"""Are drawn pictures copies of trained ones? Distances to the nearest trained picture say so."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 16
COPIES = 0.5
"""Below this ratio most drawings are nearer to a trained picture than new pictures ever are."""


def nearest_ratio(drawn: Tensor, held_out: Tensor, trained: Tensor) -> float:
    """How far drawings are from the nearest trained picture, over how far real new pictures are.

    About 1: they are as new as pictures that were never trained on; about 0: they are copies. What
    can be copied at all is in question only for captions that were not trained on.

    Args:
        drawn: [N, C, H, W], of held-out captions.
        held_out: [M, C, H, W], real pictures that were not trained on.
        trained: [K, C, H, W], those that were, or as many of them as there is time for.

    Returns:
        The ratio of the two medians; root mean square distances over 16 x 16 places at most.
    """
    known = _seen(trained)
    far = [torch.cdist(_seen(some), known).amin(dim=1).median() for some in (drawn, held_out)]
    return float(far[0] / far[1].clamp(min=1e-8))


def _seen(pictures: Tensor) -> Tensor:
    height, width = (min(SIDE, side) for side in pictures.shape[-2:])
    return F.adaptive_avg_pool2d(pictures.float(), (height, width)).flatten(1)
