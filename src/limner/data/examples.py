"""Training examples, as a function of the image count: which picture, caption, noise, and timestep.

The picture, its caption, its noise, and its place in the distribution of noise levels are made in
the loader's workers from (seed, count). The training loop adds no randomness.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from limner.data.buckets import Buckets
from limner.data.dataset import ImageDataset, ImageError, Refused, Row
from limner.data.images import Size, to_tensor
from limner.data.order import FullShuffle, Order, seeded_generator, spread_evenly
from limner.errors import LimnerError
from limner.text.batch import TextEmbeddings
from limner.text.words import some, stack

UNSEEN, KEPT = 0, 1
SHARED_MEMORY = Path("/dev/shm")
"""Shared memory on Linux; containers often have only 64 MiB."""


class Source(Protocol):
    """Pictures of some rows as the model learns them: decoded, or their stored latents."""

    rows: Sequence[Row]

    def tensor(self, position: int, flipped: bool = False) -> Tensor:
        """float32 [C, h, w], about [-1, 1] or of standard deviation 1. Raises ImageError."""
        ...


class Captions(Protocol):
    """Turns a caption into input of the model's text encoder."""

    def __call__(self, caption: str) -> Tensor | TextEmbeddings:
        """Token ids [L], or the states of a pretrained encoder. Raises ImageError."""
        ...


@dataclass(frozen=True)
class Example:
    """What the objective needs of one picture; `Batch` is the same, stacked."""

    image: Tensor  # float32 [C, h, w]: pixels in [-1, 1], or latents
    text: Tensor | TextEmbeddings  # of its caption (of the empty one if it was dropped)
    noise: Tensor  # float32 [C, h, w], standard normal
    u: Tensor  # float32 [], uniform in (0, 1): the objective turns it into a timestep
    dropout_seed: Tensor  # int32 []: of this picture's dropout masks
    refused: tuple[Refused, ...] = ()  # rows met on the way that could not be used


@dataclass(frozen=True)
class Batch:
    image: Tensor
    text: Tensor | TextEmbeddings
    noise: Tensor
    u: Tensor
    dropout_seed: Tensor
    refused: tuple[Refused, ...]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Batch:
        return cls(
            torch.stack([e.image for e in examples]),
            stack([e.text for e in examples]),  # type: ignore[arg-type]
            torch.stack([e.noise for e in examples]),
            torch.stack([e.u for e in examples]),
            torch.stack([e.dropout_seed for e in examples]),
            tuple(refused for e in examples for refused in e.refused),
        )

    def to(self, device: torch.device) -> Batch:
        return self._each(lambda part: part.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        return self._each(lambda part: part.pin_memory())

    def _each(self, move: Callable[[Any], Any]) -> Batch:
        return Batch(
            move(self.image),
            move(self.text),
            move(self.noise),
            move(self.u),
            move(self.dropout_seed),
            self.refused,
        )

    def __len__(self) -> int:
        return len(self.u)

    def pieces(self, count: int) -> Iterator[Batch]:
        """The batch cut into `count` parts, or into single pictures if there are fewer."""
        size = -(-len(self) // count)
        for first in range(0, len(self), size):
            which = slice(first, first + size)
            yield self._each(
                lambda part, which=which: (
                    part[which]  # type: ignore[misc]
                    if isinstance(part, Tensor)
                    else some(part, which)
                )
            )


class DecodedImages:
    """The decoded pictures of some rows, kept in shared memory if they fit.

    Each is decoded on first use, by whichever worker needs it.

    Args:
        image_size: side of the square pictures, without buckets.
        buckets: the size of each row.

    Attributes:
        refused: the rows that this process could not decode, by position.
        kept: all pictures in shared memory; None if they do not fit.
        crowded: whether they would fit `memory_mb`, but shared memory is too small.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        rows: Sequence[Row],
        image_size: int,
        memory_mb: int,
        buckets: Buckets | None = None,
    ) -> None:
        self.set, self.rows, self.image_size = dataset, rows, image_size
        self.buckets = buckets
        self.state = shared(torch.full((len(rows),), UNSEEN, dtype=torch.uint8))
        self.kept: Tensor | None = None
        self.crowded = False
        self.refused: dict[int, Refused] = {}
        self.starts: np.ndarray | None = None
        if buckets is not None:
            bytes_of = np.array([3 * height * width for height, width in buckets.sizes])
            self.starts = np.concatenate([[0], bytes_of[buckets.of_row].cumsum()])
        squares = (len(rows), image_size, image_size, 3)
        shape = squares if self.starts is None else (int(self.starts[-1]),)
        if math.prod(shape) <= memory_mb * 2**20:
            self.kept = shared_zeros(shape)
            self.crowded = self.kept is None

    def size(self, position: int) -> Size:
        """Size of the row's picture: a side, or (height, width)."""
        if self.buckets is None:
            return self.image_size
        height, width = self.buckets.size(position)
        return height if height == width else (height, width)

    def place(self, position: int) -> Tensor:
        """Where the row's picture is kept, [h, w, 3]."""
        assert self.kept is not None
        if self.starts is None or self.buckets is None:
            return self.kept[position]
        first, last = self.starts[position : position + 2].tolist()
        return self.kept[first:last].view(*self.buckets.size(position), 3)

    def load(self, position: int) -> Tensor:
        """uint8 [h, w, 3]. Raises ImageError."""
        if self.kept is not None and self.state[position] == KEPT:
            return self.place(position)
        row = self.rows[position]
        try:
            image = torch.from_numpy(self.set.load(row, self.size(position)))
        except ImageError as error:
            self.refused[position] = Refused(row.key, str(error))
            raise
        if self.kept is not None:
            self.place(position).copy_(image)
            self.state[position] = KEPT
        return image

    def tensor(self, position: int, flipped: bool = False) -> Tensor:
        """float32 [3, h, w] in [-1, 1]. Raises ImageError."""
        image = to_tensor(self.load(position))
        return image.flip(-1) if flipped else image


def shared(tensor: Tensor) -> Tensor:
    """The tensor in memory that the loader's workers share, or unchanged if there is none left:
    then a worker does not see what others write to it."""
    try:
        return tensor.share_memory_()
    except RuntimeError:
        return tensor


def shared_zeros(shape: tuple[int, ...]) -> Tensor | None:
    """Zeros, uint8, in shared memory; None if that would leave too little of it for the batches
    that the loader's workers send."""
    try:
        if shutil.disk_usage(SHARED_MEMORY).free < 2 * math.prod(shape):
            return None
    except OSError:  # systems that have shared memory elsewhere
        pass
    try:
        return torch.zeros(shape, dtype=torch.uint8).share_memory_()
    except RuntimeError:
        return None


class TrainingExamples(Dataset[Example]):
    """Examples by image count: `examples[count]` is the same in every process and at any time.

    An unusable row is remembered and replaced by the next good one in the list (with buckets, of
    the same size), so that the others keep their places.
    """

    def __init__(
        self,
        images: Source,
        captions: Captions,
        seed: int,
        caption_dropout: float,
        main_caption_share: float,
        horizontal_flip: float,
        order: Order | None = None,
        buckets: Buckets | None = None,
    ) -> None:
        self.images, self.captions, self.seed = images, captions, seed
        self.caption_dropout = caption_dropout
        self.main_caption_share = main_caption_share
        self.horizontal_flip = horizontal_flip
        self.order = order or FullShuffle(len(images.rows), seed)
        self.of_row = None if buckets is None else buckets.of_row
        self.bad = shared(torch.zeros(len(images.rows), dtype=torch.bool))

    def __getitem__(self, count: int) -> Example:
        # A fixed number of draws in a fixed order: a setting that is off still draws its number, so
        # that turning it on changes nothing else.
        generator = seeded_generator(self.seed, "example", count)
        drop, caption, flip = torch.rand(3, generator=generator).unbind()
        u = torch.tensor(spread_evenly(count, self.seed), dtype=torch.float32)
        image, text, refused = self.load_or_next(
            self.order.position(count),
            bool(flip < self.horizontal_flip),
            None if drop < self.caption_dropout else float(caption),
        )
        noise = torch.randn(image.shape, generator=generator)
        dropout_seed = torch.randint(-(2**31), 2**31, (), generator=generator).to(torch.int32)
        return Example(image, text, noise, u, dropout_seed, refused)

    def load_or_next(
        self, position: int, flipped: bool, caption: float | None
    ) -> tuple[Tensor, Tensor | TextEmbeddings, tuple[Refused, ...]]:
        """Picture and text of a row, or of the first good one after it, and the rows refused on the
        way."""
        refused: list[Refused] = []
        rows = self.images.rows
        for offset in range(len(rows)):
            place = (position + offset) % len(rows)
            if self.bad[place]:
                continue
            if self.of_row is not None and self.of_row[place] != self.of_row[position]:
                continue
            row = rows[place]
            words = "" if caption is None else self.choose(row.captions, caption)
            try:
                image = self.images.tensor(place, flipped)
                if not torch.isfinite(image).all():
                    raise ImageError(f"{row.key}: contains NaN or infinite values")
                return image, self.captions(words), tuple(refused)
            except ImageError as error:
                self.bad[place] = True
                refused.append(Refused(row.key, str(error)))
        reason = f"; the last: {refused[-1].reason}" if refused else ""
        raise LimnerError(f"none of the {len(rows)} pictures could be used{reason}")

    def choose(self, captions: tuple[str, ...], u: float) -> str:
        if len(captions) == 1 or u < self.main_caption_share:
            return captions[0]
        others = (u - self.main_caption_share) / (1 - self.main_caption_share)
        return captions[1 + min(int(others * (len(captions) - 1)), len(captions) - 2)]
