"""Read precomputed latents and text embeddings during training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from limner.data.buckets import Buckets
from limner.data.dataset import ImageError, Row
from limner.data.precomputed.store import Store
from limner.files.fingerprints import digest
from limner.messages import shorten
from limner.text.batch import TextEmbeddings
from limner.text.words import stack


class StoredLatents:
    """The latents of some rows; a `Source`.

    Args:
        ids: uint8 [N, 16], the content of each row's picture.
        flipped: uint8 [N, 16], that of its mirrored picture; None: mirrored ones were not stored.
    """

    def __init__(
        self, store: Store, rows: Sequence[Row], ids: np.ndarray, flipped: np.ndarray | None
    ) -> None:
        self.store, self.rows, self.ids = store, rows, ids
        self.positions = store.find(ids)
        self.flipped = None if flipped is None else store.find(flipped)

    def tensor(self, position: int, flipped: bool = False) -> Tensor:
        """float32 [C, h, w], of standard deviation about 1. Raises ImageError."""
        places = self.positions
        if flipped and self.flipped is not None:
            places = self.flipped
        if places[position] < 0:
            reason = self.store.reason(self.ids[position].tobytes())
            raise ImageError(
                f"{self.rows[position].key}: {reason or 'its latents are not in the store'}"
            )
        try:
            return self.store.read(int(places[position]))[0].float()
        except ImageError as error:
            raise ImageError(f"{self.rows[position].key}: {error}") from None


class LatentsInBuckets:
    """Latents of several sizes, each size in a store of its own; a `Source`.

    Args:
        parts: of each bucket, its rows in their order.
    """

    def __init__(
        self, rows: Sequence[Row], parts: Sequence[StoredLatents], buckets: Buckets
    ) -> None:
        self.rows, self.parts, self.of_row = rows, parts, buckets.of_row
        self.places = np.zeros(len(rows), dtype=np.int64)
        for members in buckets.members():
            self.places[members] = np.arange(len(members))

    def tensor(self, position: int, flipped: bool = False) -> Tensor:
        """float32 [C, h, w], of standard deviation about 1. Raises ImageError."""
        return self.parts[self.of_row[position]].tensor(int(self.places[position]), flipped)


class StoredCaptions:
    """What a pretrained text encoder made of each caption, all padded to the longest of them.

    A row of the store is [1 + l, D]: the vector of the caption, then the states of its tokens.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.length = store.longest - 1

    def __call__(self, caption: str) -> TextEmbeddings:
        """One caption, in the store's precision. Raises ImageError."""
        id = caption_id(caption)
        (place,) = self.store.find(np.frombuffer(id, dtype=np.uint8)[None])
        if place < 0:
            reason = self.store.reason(id) or "it is not in the store"
            raise ImageError(f"caption {shorten(caption)}: {reason}")
        try:
            row = self.store.read(int(place))
        except ImageError as error:
            raise ImageError(f"caption {shorten(caption)}: {error}") from None
        one = TextEmbeddings.stack([(row[1:], row[0])], self.length)
        return TextEmbeddings(*(part[0] for part in one))

    def encode(self, captions: Sequence[str]) -> TextEmbeddings:
        """B captions, which must have been stored."""
        batch = stack([self(caption) for caption in captions])
        assert isinstance(batch, TextEmbeddings)
        return batch


def caption_id(caption: str) -> bytes:
    """The id of a caption in the store."""
    return digest(caption.encode("utf-8", errors="replace"))


def mirrored(ids: np.ndarray) -> np.ndarray:
    """The ids of mirrored pictures: uint8 [N, 16] -> [N, 16]; zeros, which are unknown, stay."""
    found = np.zeros_like(ids)
    for number in np.flatnonzero(ids.any(axis=1)):
        found[number] = np.frombuffer(digest(ids[number].tobytes(), b"mirrored"), dtype=np.uint8)
    return found


def packed(states: Tensor, vector: Tensor, dtype: torch.dtype) -> Tensor:
    """States [l, D] and vector [D] as a row of the store, [1 + l, D]."""
    return torch.cat([vector[None], states]).to(dtype)
