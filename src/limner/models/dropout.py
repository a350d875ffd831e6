"""Dropout with a mask per picture that does not depend on the batch.

A mask from the global random number generator depends on everything drawn before: on the batch
size, the number of processes, the device. Here it is a hash of (the picture's seed, place in the
network, place in the tensor), so a run does not change with its batches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

GOLDEN = -1640531527  # 2^32 / golden ratio, as a signed 32-bit number


class ImageDropout(nn.Module):
    """Zeroes a share p of x [B, ...] in training, and scales the rest by 1 / (1 - p).

    `seed_dropout` sets the seeds of the batch; without them they are drawn from torch's generator.
    """

    seeds: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.register_buffer("seeds", torch.zeros(0, dtype=torch.int32), persistent=False)

    def forward(self, x: Tensor, salt: int = 0) -> Tensor:
        """salt: distinguishes uses within one block."""
        if not self.training or self.p == 0:
            return x
        seeds = self.seeds
        if len(seeds) != len(x):
            seeds = torch.randint(-(2**31), 2**31, (len(x),), device=x.device).to(torch.int32)
        kept = keep_mask(seeds + salt * 7919, x[0].numel(), self.p).view_as(x)
        return torch.where(kept, x * (1 / (1 - self.p)), 0.0)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def keep_mask(seeds: Tensor, count: int, p: float) -> Tensor:
    """bool [B, count], true with probability 1 - p: a Weyl sequence through murmur3's finaliser
    (Appleby 2011), in int32, which wraps around alike on every device.

    Args:
        seeds: int32 [B].
    """
    h = seeds[:, None] + torch.arange(count, dtype=torch.int32, device=seeds.device) * GOLDEN
    h = (h ^ ((h >> 16) & 0xFFFF)) * -2048144789  # 0x85ebca6b
    h = (h ^ ((h >> 13) & 0x7FFFF)) * -1028477387  # 0xc2b2ae35
    h = h ^ ((h >> 16) & 0xFFFF)
    return (h & 0x7FFFFFFF) >= round(p * 2**31)


def seed_dropout(model: nn.Module, seeds: Tensor) -> None:
    """Fix the masks of the next forward pass (and of its backward) by a seed per picture.

    Args:
        seeds: int32 [B], on the model's device.
    """
    places = [module for module in model.modules() if isinstance(module, ImageDropout)]
    for place, module in enumerate(places):
        module.seeds = seeds + place * 104729
