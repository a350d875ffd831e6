"""The numbers of torch.randn, from the same seeds."""

from __future__ import annotations

import numpy as np


def normal(stream: np.random.RandomState, count: int) -> np.ndarray:
    """The next torch.randn(count) of a torch.Generator with this seed on a processor, to 1e-6.

    24 bits of each number of the Mersenne Twister make a uniform one, and 16 of these are turned at
    once (Box & Muller 1958), the first 8 being radii and the others angles. What is left over at
    the end is drawn again together with the numbers before it.

    Args:
        count: at least 16.
    """

    def turned(count: int) -> np.ndarray:
        bits = np.frombuffer(stream.bytes(4 * count), "<u4") & 0xFFFFFF
        radius, angle = np.moveaxis((bits / 2**24)[: count // 16 * 16].reshape(-1, 2, 8), 1, 0)
        radius, angle = np.sqrt(-2 * np.log1p(-radius)), 2 * np.pi * angle
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()

    found = turned(count)
    if count % 16:
        found = np.concatenate([found, np.zeros(count % 16)])
        found[-16:] = turned(16)
    return found.astype(np.float32)
