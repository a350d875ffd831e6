"""Which captions settings are chosen on, and which others the choice is reported on.

Prompts that people type are not those of the training pictures, so the choice is made on captions
that were never trained: those of one half of the held-out rows, by a hash of each key. The other
half says how good the choice is, with noise of other seeds; no setting was chosen by it. Where that
first half is smaller than what is to be drawn, trained captions fill up, for a choice by a handful
of captions fits that handful.

Whoever reports on all held-out pictures of a checkpoint that was swept reports on some that a
choice among a hundred settings was made by (no weight was trained on them): `swept_note` is the
sentence about it that belongs beside such numbers.
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
"""Pictures among which a drawing's true one is looked for, at most, those of its part included."""
FEWEST = 8
"""Captions that a report needs; with fewer held out, trained ones that nothing was chosen on fill
up."""
REPORTED_SEEDS = 1_000_000
"""The first seed of what is reported."""


@dataclass(frozen=True)
class Part:
    """Captions to draw, in an order that any first few of are a fair sample, and their pictures.

    Attributes:
        name: "chosen" or "reported".
        keys: of the rows.
        asked: each caption once, with its real picture.
        first_seed: drawing i has seed first_seed + i, and caption i modulo N.
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
        """How many of them were held out."""
        return sum(d.split is Split.HELD_OUT for d in self.asked)

    @property
    def images(self) -> Tensor:
        """uint8 [N, S, S, 3]."""
        return torch.from_numpy(np.stack([d.truth for d in self.asked if d.truth is not None]))

    def drawings(self, first: int, last: int) -> list[Drawing]:
        """Number `first` to `last` - 1, to be drawn."""
        return [
            replace(self.asked[i % len(self.asked)], seed=self.first_seed + i)
            for i in range(first, last)
        ]


def parts_of(data: Data, images: int) -> tuple[Part, Part]:
    """What settings are chosen on, and what is reported on; no row is in both.

    Args:
        images: to be drawn of each, at most.

    Raises:
        LimnerError: there are too few pictures for a choice.
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
    # Of what cannot be decoded training has told, and its row is in refused.jsonl.
    good = sorted((key for key, d in asked.items() if d.truth is not None), key=sampling_rank)
    if len(good) < 2:
        raise LimnerError(
            f"settings are {name} by real pictures, but {data.set.name} has only {len(good)} for "
            "that; a sweep needs at least 2, preferably 64"
        )
    return Part(name, tuple(good), tuple(asked[key] for key in good), first_seed)


def gallery_of(data: Data, part: Part) -> Gallery | None:
    """All pictures among which a drawing's true one is looked for, those of the part first.

    None where two of them have the same caption, so that no one of them is the true one.
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
    """Positions in an order that depends on keys alone."""
    return sorted(range(len(rows)), key=lambda i: sampling_rank(rows[i].key))
