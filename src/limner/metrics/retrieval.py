"""Recall@k: is the true image of a prompt among the k nearest to the generated one?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 16
DISTANCE = f"root mean square over {SIDE} x {SIDE} pixels (area-averaged RGB)"


def features(images: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3 * SIDE * SIDE]: images averaged to SIDE x SIDE pixels.

    Those that are not square are squeezed. Averaging tolerates shifts by one pixel, which a person
    would not notice either.
    """
    x = images.permute(0, 3, 1, 2).float() / 255
    return F.adaptive_avg_pool2d(x, SIDE).flatten(1)


def ranks(drawn: Tensor, truth: Sequence[int], range_images: Tensor) -> list[int]:
    """Rank of each generated image's true image in the gallery, by distance: 1 is the nearest.

    Args:
        drawn: generated images, uint8 [N, S, S, 3].
        truth: for each, the position of its true image in the gallery.
        range_images: the gallery, uint8 [M, S, S, 3]. Equal images share the better rank.
    """
    return ranks_by(features(drawn), truth, features(range_images))


def ranks_by(drawn: Tensor, truth: Sequence[int], range_features: Tensor) -> list[int]:
    """`ranks` from the `features` of the images, [N, d] and [M, d]."""
    distances = torch.cdist(drawn, range_features)
    own = distances[torch.arange(len(truth)), torch.tensor(truth)]
    return (1 + (distances < own[:, None]).sum(dim=1)).tolist()


def summary(ranks_of: Sequence[int]) -> dict[str, float]:
    """Recall@1 and recall@5."""
    count = len(ranks_of)
    return {
        "count": count,
        "at_1": round(sum(r <= 1 for r in ranks_of) / count, 4),
        "at_5": round(sum(r <= 5 for r in ranks_of) / count, 4),
    }
