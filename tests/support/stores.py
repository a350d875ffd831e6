"""Small stores of latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from limner.data.precomputed.fill import fill
from limner.data.precomputed.store import Store

KEY: dict[str, Any] = {"autoencoder": "abc", "image_size": 256, "dtype": "float16"}


def ids_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16), dtype=np.uint8)


class Maker:
    """Row i is a latent of i; remembers what it was asked for."""

    def __init__(self, bad: dict[int, Any] | None = None, dtype: torch.dtype = torch.float16):
        self.bad, self.dtype, self.asked = bad or {}, dtype, list[int]()

    def __call__(self, indices: list[int]) -> list[torch.Tensor | str]:
        self.asked += indices
        return [
            self.bad.get(i, torch.full((1, 2, 3), float(i % 1000), dtype=self.dtype))
            for i in indices
        ]


def filled(parent: Path, count: int = 20, maker: Maker | None = None, key: Any = KEY) -> Store:
    store = Store.open(parent, "latents", key)
    fill(store, ids_of(count), maker or Maker(), rows_per_shard=8, batch_size=3)
    return store


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
