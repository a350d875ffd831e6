"""The captions that settings are selected on, and those that the selection is reported on.

Settings are selected on captions that were not trained on: one half of the held-out rows, by a hash
of each key. The selection is reported on the other half, with other seeds, so the report is
unbiased. If the first half is too small, it is filled up with training captions, since a selection
on a handful of captions would overfit them.

An evaluation of a swept checkpoint on all held-out images includes some that the settings were
selected on, although no weight was trained on them: `swept_note` is the caveat for such results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from limner.data.dataset import Row
from limner.data.open import Data
from limner.data.order import evenly_spaced
from limner.data.split import in_second_half, sampling_rank
from limner.errors import LimnerError
from limner.evaluation.prompt_following import Gallery
from limner.evaluation.samples import Drawing, images_of, show_truth
from limner.evaluation.splits import Split

RANGE = 1000
"""Maximum size of the gallery for recall, including the images of the part."""
FEWEST = 8
"""Minimum number of captions for the report; filled up with unused training captions."""
REPORTED_SEEDS = 1_000_000
"""The first seed of the reported part."""


@dataclass(frozen=True)
class Part:
    """Captions with their real images, in random order, so that every prefix is a fair sample.

    Attributes:
        name: "chosen" or "reported".
        keys: of the rows.
        asked: each caption once, with its real image.
        first_seed: image i has seed first_seed + i and caption i modulo N.
    """

    name: str
    keys: tuple[str, ...]
    asked: tuple[Drawing, ...]
    first_seed: int

    @property
    def captions(self) -> list[str]:
        return [d.prompt for d in self.asked]

    @property
    def held_out(self) -> int:
        """The number of held-out captions."""
        return sum(d.split is Split.HELD_OUT for d in self.asked)

    @property
    def images(self) -> Tensor:
        """uint8 [N, S, S, 3]."""
        return torch.from_numpy(np.stack([d.truth for d in self.asked if d.truth is not None]))

    def drawings(self, first: int, last: int) -> list[Drawing]:
        """The prompts of images `first` to `last` - 1."""
        return [
            replace(self.asked[i % len(self.asked)], seed=self.first_seed + i)
            for i in range(first, last)
        ]


def parts_of(data: Data, images: int) -> tuple[Part, Part]:
    """The parts to select settings on and to report on; they have no row in common.

    Args:
        images: maximum number of images per setting.

    Raises:
        LimnerError: there are too few images.
    """
    halves: list[list[tuple[Split, int]]] = [[], []]
    for i, row in enumerate(data.held_out.rows):
        halves[in_second_half(row.key)].append((Split.HELD_OUT, i))
    trained = [(Split.TRAINED, i) for i in _shuffled(data.trained.rows)]
    chosen, reported = halves
    fill = max(0, images - len(chosen))
    chosen = chosen[:images] + trained[:fill]
    reported = reported[:images]
    if len(reported) < FEWEST:
        reported += trained[fill : fill + FEWEST - len(reported)]
    return (
        _part("chosen", data, chosen, 0),
        _part("reported", data, reported, REPORTED_SEEDS),
    )


def _part(name: str, data: Data, members: Sequence[tuple[Split, int]], first_seed: int) -> Part:
    asked: dict[str, Drawing] = {}
    for split, i in members:
        row = images_of(data, split).rows[i]
        asked[row.key] = Drawing(row.captions[0], first_seed, split, i)
    show_truth(asked.values(), data)
    # Training has already reported undecodable images, and listed them in refused.jsonl.
    good = sorted((key for key, d in asked.items() if d.truth is not None), key=sampling_rank)
    if len(good) < 2:
        raise LimnerError(
            f"{data.set.name} has only {len(good)} readable images for the {name} part; a sweep "
            "requires at least 2, preferably 64"
        )
    return Part(name, tuple(good), tuple(asked[key] for key in good), first_seed)


def gallery_of(data: Data, part: Part) -> Gallery | None:
    """The gallery for recall, which includes the images of the part.

    None if several images have the same caption, so that there is no single true image.
    """
    gallery = Gallery(data)
    for d in part.asked:
        if d.position is not None:
            gallery.add(d.split, [d.position])
    for split in (Split.HELD_OUT, Split.TRAINED):
        count = len(images_of(data, split).rows)
        others = [i for i in range(count) if (split, i) not in gallery.places]
        gallery.add(split, [others[k] for k in evenly_spaced(len(others), RANGE - len(gallery))])
    return None if gallery.shared_captions() else gallery


def _shuffled(rows: Sequence[Row]) -> list[int]:
    """Indices in an order that depends only on the keys."""
    return sorted(range(len(rows)), key=lambda i: sampling_rank(rows[i].key))
