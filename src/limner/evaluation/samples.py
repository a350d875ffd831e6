"""Prompts that are drawn to look at a model: captions of the data, with what is true of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limner.config import Config, SamplingConfig
from limner.config.types import SEEDS
from limner.data.dataset import ImageError
from limner.data.examples import DecodedImages
from limner.data.open import Data
from limner.data.order import evenly_spaced
from limner.device import choose_device, choose_precision, name_of
from limner.evaluation.splits import Split
from limner.inference.generator import ImageGenerator
from limner.memory import in_parts_that_fit

AT_ONCE = 64
"""Pictures drawn together at most; fewer where memory does not suffice."""
FEW = 16
"""Pictures that are drawn however short the time is."""


def images_of(data: Data, split: Split) -> DecodedImages:
    """The rows of a split of the data set."""
    return {Split.TRAINED: data.trained, Split.HELD_OUT: data.held_out}[split]


@dataclass
class Drawing:
    """A prompt, what was drawn for it, and what is known of the truth."""

    prompt: str
    seed: int
    split: Split
    position: int | None = None
    """Of its row among those of its split."""
    image: Image.Image | None = None
    truth: np.ndarray | None = None
    """The row's own picture, uint8 [S, S, 3], of those that are shown; see `show_truth`."""
    rank: int | None = None
    """Of the row's own picture among others, by likeness: 1 is the nearest."""
    holds: dict[str, bool] | None = None
    """Of shapes: the parts of the caption, and whether the picture has them."""

    @property
    def right(self) -> bool | None:
        """Whether all of them hold."""
        return None if self.holds is None else all(self.holds.values())


def of_captions(
    images: DecodedImages, split: Split, most: int, first_seed: int | None = None
) -> list[Drawing]:
    """At most `most` rows of a split, evenly spread, each with its main caption.

    Args:
        first_seed: that of the first, and one more for each of the next; None: a row's seed is its
            position.
    """
    return [
        Drawing(
            images.rows[i].captions[0],
            i if first_seed is None else (first_seed + number) % SEEDS,
            split,
            i,
        )
        for number, i in enumerate(evenly_spaced(len(images.rows), most))
    ]


def repeated(drawings: Sequence[Drawing], count: int) -> list[Drawing]:
    """So many drawings: the same prompts again, in order, with the seeds after the last one's."""
    every = list(drawings)
    while drawings and len(every) < count:
        again = drawings[len(every) % len(drawings)]
        seed = (every[-1].seed + 1) % SEEDS
        every.append(Drawing(again.prompt, seed, again.split, again.position))
    return every


def some_of_each(splits: Iterable[Split], drawings: Sequence[Drawing], most: int) -> list[Drawing]:
    """At most so many of each split, evenly spread, split by split."""
    chosen = list[Drawing]()
    for split in splits:
        own = [d for d in drawings if d.split is split]
        chosen += [own[i] for i in evenly_spaced(len(own), most)]
    return chosen


def open_generator(
    checkpoint: str | Path,
    config: Config,
    device: str | None = None,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    guide: str | Path | None = None,
) -> ImageGenerator:
    """To draw hundreds of pictures: in the precision of training, as previews are."""
    place = choose_device(device or "auto")
    dtype = name_of(choose_precision(config.training.mixed_precision, place))
    return ImageGenerator(
        checkpoint, device=place, dtype=dtype, vae=vae, text_encoder=text_encoder, guide=guide
    )


def draw(
    generator: ImageGenerator,
    drawings: Sequence[Drawing],
    progress: Callable[[int, int], None] | None = None,
    seconds: float | None = None,
    sampling: SamplingConfig | None = None,
) -> None:
    """Fill in the pictures, in smaller parts where memory runs out.

    Args:
        progress: is told the pictures done and the pictures there are.
        seconds: what would not be done by then is left out, and its `picture` stays None; the first
            `FEW` are drawn in any case. None: all are drawn.
        sampling: None: as the generator has it.
    """
    settings = {} if sampling is None else sampling.model_dump()
    began, drawn, size = time.monotonic(), 0, AT_ONCE
    while drawn < len(drawings):
        room = AT_ONCE
        if seconds is not None:
            took = time.monotonic() - began
            room = min(room, int((seconds - took) * drawn / max(took, 1e-6))) if drawn else FEW
            if room < 1:
                return
        some = drawings[drawn : drawn + room]
        prompts, seeds = [d.prompt for d in some], [d.seed for d in some]

        def in_parts(
            at_once: int, prompts: list[str] = prompts, seeds: list[int] = seeds
        ) -> tuple[int, list[Image.Image]]:
            return at_once, generator.generate_batch(
                prompts, seeds=seeds, batch_size=at_once, **settings
            )

        # What fitted for one part is where the next one begins.
        size, images = in_parts_that_fit(size, in_parts)
        for drawing, image in zip(some, images, strict=True):
            drawing.image = image
        drawn += len(some)
        if progress is not None:
            progress(drawn, len(drawings))


def in_any_number(drawings: Sequence[Drawing]) -> list[Drawing]:
    """In an order of which each beginning is evenly spread over the whole (van der Corput's)."""
    bits = max(1, (len(drawings) - 1).bit_length())

    def reversed_bits(place: int) -> int:
        return int(f"{place:0{bits}b}"[::-1], 2)

    return [drawings[i] for i in sorted(range(len(drawings)), key=reversed_bits)]


def as_tensor(drawings: Sequence[Drawing]) -> Tensor:
    """What was drawn, uint8 [N, H, W, 3]."""
    return torch.stack([torch.from_numpy(np.array(d.image)) for d in drawings])


def show_truth(drawings: Iterable[Drawing], data: Data) -> None:
    """Put each one's real picture beside it, if it has one that can be decoded: a caption can be
    drawn without."""
    for drawing in drawings:
        if drawing.position is not None:
            with contextlib.suppress(ImageError):
                image = images_of(data, drawing.split).load(drawing.position)
                drawing.truth = image.numpy().copy()
