"""One example: everything about the `count`-th picture of a run that depends on that count.

The picture, its caption, its noise, and its place in the distribution of noise levels are made
here, in the loader's workers, each from (seed, count). The training loop adds nothing random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from limner.data.order import position_of, seeded_generator
from limner.data.pictures import to_tensor
from limner.data.rows import PictureError, PictureSet, Refused, Row
from limner.errors import LimnerError
from limner.text.tokenizer import CaptionTokenizer

UNSEEN, KEPT, BAD = 0, 1, 2


@dataclass(frozen=True)
class Example:
    """What the objective needs of one picture; `Batch` is the same, stacked."""

    picture: Tensor  # float32 [3, S, S] in [-1, 1]
    ids: Tensor  # int64 [L], token ids of the caption (of the empty one if it was dropped)
    noise: Tensor  # float32 [3, S, S], standard normal
    u: Tensor  # float32 [], uniform in (0, 1): the objective turns it into a timestep
    refused: tuple[Refused, ...] = ()  # rows met on the way that could not be decoded


@dataclass(frozen=True)
class Batch:
    picture: Tensor
    ids: Tensor
    noise: Tensor
    u: Tensor
    refused: tuple[Refused, ...]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Batch:
        return cls(
            torch.stack([e.picture for e in examples]),
            torch.stack([e.ids for e in examples]),
            torch.stack([e.noise for e in examples]),
            torch.stack([e.u for e in examples]),
            tuple(refused for e in examples for refused in e.refused),
        )

    def to(self, device: torch.device) -> Batch:
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        return self._each(Tensor.pin_memory)

    def _each(self, move: Callable[[Tensor], Tensor]) -> Batch:
        tensors = move(self.picture), move(self.ids), move(self.noise), move(self.u)
        return Batch(*tensors, refused=self.refused)


class Pictures:
    """Decoded pictures of some rows, kept in shared memory if they fit.

    Each is decoded when first asked for, by whichever worker is asked. A row that cannot be decoded
    is remembered, and the next good one in the list stands in, so the others keep their places.
    """

    def __init__(
        self, picture_set: PictureSet, rows: list[Row], image_size: int, memory_mb: int
    ) -> None:
        self.set, self.rows, self.image_size = picture_set, rows, image_size
        self.state = torch.full((len(rows),), UNSEEN, dtype=torch.uint8).share_memory_()
        self.kept: Tensor | None = None
        if len(rows) * 3 * image_size**2 <= memory_mb * 2**20:
            shape = (len(rows), image_size, image_size, 3)
            self.kept = torch.zeros(shape, dtype=torch.uint8).share_memory_()

    def load(self, position: int) -> Tensor:
        """uint8 [S, S, 3]. Raises PictureError."""
        if self.kept is not None and self.state[position] == KEPT:
            return self.kept[position]
        picture = torch.from_numpy(self.set.load(self.rows[position], self.image_size))
        if self.kept is not None:
            self.kept[position] = picture
            self.state[position] = KEPT
        return picture

    def load_or_next(self, position: int) -> tuple[Tensor, Row, tuple[Refused, ...]]:
        """The picture of a row, or of the first good one after it, with what was newly refused."""
        refused: list[Refused] = []
        for offset in range(len(self.rows)):
            place = (position + offset) % len(self.rows)
            if self.state[place] == BAD:
                continue
            try:
                return self.load(place), self.rows[place], tuple(refused)
            except PictureError as error:
                self.state[place] = BAD
                refused.append(Refused(self.rows[place].key, str(error)))
        reason = f"; the last: {refused[-1].reason}" if refused else ""
        raise LimnerError(f"none of the {len(self.rows)} pictures could be decoded{reason}")


class TrainingExamples(Dataset[Example]):
    """Examples by image count: `examples[count]`, the same whoever asks and whenever."""

    def __init__(
        self,
        pictures: Pictures,
        tokenizer: CaptionTokenizer,
        seed: int,
        caption_dropout: float,
        main_caption_share: float,
        horizontal_flip: float,
    ) -> None:
        self.pictures, self.tokenizer, self.seed = pictures, tokenizer, seed
        self.caption_dropout = caption_dropout
        self.main_caption_share = main_caption_share
        self.horizontal_flip = horizontal_flip

    def __getitem__(self, count: int) -> Example:
        position = position_of(count, len(self.pictures.rows), self.seed)
        pixels, row, refused = self.pictures.load_or_next(position)
        picture = to_tensor(pixels)
        # A fixed number of draws in a fixed order: a setting that is off still takes its number, so
        # that turning one on changes nothing else.
        generator = seeded_generator(self.seed, "example", count)
        u, drop, caption, flip = torch.rand(4, generator=generator).unbind()
        if flip < self.horizontal_flip:
            picture = picture.flip(-1)
        words = "" if drop < self.caption_dropout else self.choose(row.captions, float(caption))
        noise = torch.randn(picture.shape, generator=generator)
        return Example(picture, self.tokenizer(words), noise, u, refused)

    def choose(self, captions: tuple[str, ...], u: float) -> str:
        if len(captions) == 1 or u < self.main_caption_share:
            return captions[0]
        others = (u - self.main_caption_share) / (1 - self.main_caption_share)
        return captions[1 + min(int(others * (len(captions) - 1)), len(captions) - 2)]


def warn_of_long_captions(rows: list[Row], tokenizer: CaptionTokenizer) -> str | None:
    """A sentence about main captions that are cut, if there are any (a sample of 2,000 rows)."""
    sample = rows[:: max(1, len(rows) // 2000)]
    cut = sum(tokenizer.length(row.captions[0]) > tokenizer.max_length for row in sample)
    if not cut:
        return None
    return (
        f"{cut / len(sample):.0%} of the captions are longer than text_encoder.max_length "
        f"{tokenizer.max_length} tokens and are cut there"
    )
