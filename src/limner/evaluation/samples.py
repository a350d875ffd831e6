"""Sampling of images for an evaluation: prompts, generated images, and real images."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

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
from limner.inference.sampling import pictures_done
from limner.memory import in_parts_that_fit

T = TypeVar("T")
AT_ONCE = 64
"""Maximum batch size; reduced if memory runs out."""
FEW = 16
"""Images that are generated regardless of the time limit."""


def images_of(data: Data, split: Split) -> DecodedImages:
    """The rows of a split of the data set."""
    return {Split.TRAINED: data.trained, Split.HELD_OUT: data.held_out}[split]


@dataclass
class Drawing:
    """A prompt, the image generated from it, and its real image."""

    prompt: str
    seed: int
    split: Split
    position: int | None = None
    """Index of its row in the split."""
    size: tuple[int, int] | None = None
    """Height and width that its row is trained at, with `data.buckets`; None: the training size."""
    image: Image.Image | None = None
    truth: np.ndarray | None = None
    """The real image of the row, uint8 [S, S, 3]; set by `show_truth`."""
    rank: int | None = None
    """Rank of the real image among all, by distance: 1 is the nearest."""
    holds: dict[str, bool] | None = None
    """For shapes: the parts of the caption, and whether each holds in the image."""

    @property
    def right(self) -> bool | None:
        """Whether all parts hold."""
        return None if self.holds is None else all(self.holds.values())


def of_captions(
    images: DecodedImages, split: Split, most: int, first_seed: int | None = None
) -> list[Drawing]:
    """At most `most` rows of a split, evenly spaced, each with its main caption.

    Args:
        first_seed: seed of the first, incremented for each of the others; None: the seed of a row
            is its index.
    """
    return [
        Drawing(
            images.rows[i].captions[0],
            i if first_seed is None else (first_seed + number) % SEEDS,
            split,
            i,
            None if images.buckets is None else images.buckets.size(i),
        )
        for number, i in enumerate(evenly_spaced(len(images.rows), most))
    ]


def repeated(drawings: Sequence[Drawing], count: int) -> list[Drawing]:
    """Repeat the prompts in order, with consecutive seeds, until there are `count`."""
    every = list(drawings)
    while drawings and len(every) < count:
        again = drawings[len(every) % len(drawings)]
        seed = (every[-1].seed + 1) % SEEDS
        every.append(Drawing(again.prompt, seed, again.split, again.position, again.size))
    return every


def some_of_each(splits: Iterable[Split], drawings: Sequence[Drawing], most: int) -> list[Drawing]:
    """At most `most` of each split, evenly spaced, in order of the splits."""
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
    """Open a generator in the precision of training, as for previews."""
    place = choose_device(device or "auto")
    dtype = name_of(choose_precision(config.training.mixed_precision, place))
    return ImageGenerator(
        checkpoint, device=place, dtype=dtype, vae=vae, text_encoder=text_encoder, guide=guide
    )


def draw(
    generator: ImageGenerator,
    drawings: Sequence[Drawing],
    progress: Callable[[float, int], None] | None = None,
    seconds: float | None = None,
    sampling: SamplingConfig | None = None,
) -> None:
    """Generate the images, in smaller batches if memory runs out.

    Args:
        progress: called with the numbers of generated images and of all that there is time for,
            after each step of each batch, in which a started image is a part of one.
        seconds: time limit; images that exceed it stay None, except the first `FEW`. None: no
            limit.
        sampling: sampling settings; None: those of the generator.
    """
    settings = {} if sampling is None else sampling.model_dump()
    began, drawn, size = time.monotonic(), 0, AT_ONCE
    left = list(drawings)
    while left:
        room = total = len(drawings)
        if seconds is not None:
            took = time.monotonic() - began
            room = int((seconds - took) * drawn / max(took, 1e-6)) if drawn else FEW
            if room < 1:
                return
            total = min(total, drawn + room)
        window = left[: min(room, AT_ONCE)]
        some = [d for d in window if d.size == window[0].size]
        left = [*(d for d in window if d.size != window[0].size), *left[len(window) :]]
        prompts, seeds = [d.prompt for d in some], [d.seed for d in some]
        of_size: tuple[int, int] | tuple[None, None] = some[0].size or (None, None)

        def in_parts(
            at_once: int,
            prompts: list[str] = prompts,
            seeds: list[int] = seeds,
            span: tuple[int, int] = (total, drawn),
            of_size: tuple[int, int] | tuple[None, None] = of_size,
        ) -> tuple[int, list[Image.Image]]:
            told = None if progress is None else pictures_done(progress, *span)
            return at_once, generator.generate_batch(
                prompts,
                seeds=seeds,
                batch_size=at_once,
                progress=told,
                height=of_size[0],
                width=of_size[1],
                **settings,
            )

        # Start the next part with the batch size that fitted this one.
        size, images = in_parts_that_fit(size, in_parts)
        for drawing, image in zip(some, images, strict=True):
            drawing.image = image
        drawn += len(some)
        if progress is not None:
            progress(drawn, total)


def in_any_number(drawings: Sequence[T]) -> list[T]:
    """In van der Corput order, of which every prefix is evenly spaced."""
    bits = max(1, (len(drawings) - 1).bit_length())

    def reversed_bits(place: int) -> int:
        return int(f"{place:0{bits}b}"[::-1], 2)

    return [drawings[i] for i in sorted(range(len(drawings)), key=reversed_bits)]


def as_tensor(drawings: Sequence[Drawing]) -> Tensor:
    """The generated images, uint8 [N, H, W, 3]."""
    return torch.stack([torch.from_numpy(np.array(d.image)) for d in drawings])


def show_truth(drawings: Iterable[Drawing], data: Data) -> None:
    """Load the real image of each prompt that has one, unless it cannot be decoded."""
    for drawing in drawings:
        if drawing.position is not None:
            with contextlib.suppress(ImageError):
                image = images_of(data, drawing.split).load(drawing.position)
                drawing.truth = image.numpy().copy()
