"""Prompt following: recall of the true image, or the checker of shapes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner.data.builtin.shapes_checker import check
from limner.data.dataset import ImageError
from limner.data.open import Data
from limner.data.order import evenly_spaced
from limner.evaluation.samples import Drawing, as_tensor, images_of, in_any_number
from limner.evaluation.splits import OF_DATA, Split
from limner.metrics import retrieval


def why_no_recall(data: Data) -> str | None:
    """Why recall is undefined for this data set, or None: each caption must have one true image."""
    every = chain(data.trained.rows, data.held_out.rows)
    shared = shared_captions(row.captions[0] for row in every)
    if not shared:
        return None
    count = len(data.trained.rows) + len(data.held_out.rows)
    return (
        f"skipped recall: {shared:,} of {count:,} captions belong to several images, so there "
        "is no single true image"
    )


def shared_captions(captions: Iterable[str]) -> int:
    """The number of captions that occur more than once."""
    return sum(count for count in Counter(captions).values() if count > 1)


class Gallery:
    """The real images that recall searches, as `retrieval.features`.

    Attributes:
        places: gallery index by split and row index.
    """

    def __init__(self, data: Data) -> None:
        self.data = data
        self.places: dict[tuple[Split, int], int] = {}
        self._features: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.places)

    def add(self, split: Split, positions: Iterable[int]) -> None:
        """Add rows of a split; rows whose images cannot be decoded are skipped."""
        for position in positions:
            try:
                image = images_of(self.data, split).load(position)
            except ImageError:
                continue
            self.places[split, position] = len(self._features)
            self._features.append(retrieval.features(image[None])[0])

    def shared_captions(self) -> int:
        """`shared_captions` of the main captions in the gallery."""
        return shared_captions(
            images_of(self.data, split).rows[i].captions[0] for split, i in self.places
        )

    def rank(self, drawings: Iterable[Drawing]) -> None:
        """Set the rank of each generated image whose true image is in the gallery."""
        places = [
            (drawing, self.places[drawing.split, drawing.position])
            for drawing in drawings
            if drawing.position is not None and (drawing.split, drawing.position) in self.places
        ]
        if not places:
            return
        known, truth = zip(*places, strict=True)
        # One at a time: with data.buckets they are of several sizes.
        drawn = torch.cat([retrieval.features(as_tensor([drawing])) for drawing in known])
        for drawing, rank in zip(
            known, retrieval.ranks_by(drawn, truth, torch.stack(self._features)), strict=True
        ):
            drawing.rank = rank


def rank_drawings(
    drawings: Sequence[Drawing],
    data: Data,
    most: int | None = None,
    progress: Callable[[float, int], None] | None = None,
    seconds: float | None = None,
) -> int:
    """Rank the true image of each generated image among all images of the data set.

    Images that cannot be decoded are not in the gallery; their prompts get no rank.

    Args:
        most: maximum size of the gallery, which always includes the true images; None: all images.
        progress: called with the numbers of images read and to be read.
        seconds: time limit of reading images; the true ones are read however long that takes, and
            of the others as many as there is time for, evenly spread. None: no limit.

    Returns:
        The size of the gallery.
    """
    gallery, began = Gallery(data), time.monotonic()
    true, others = list[tuple[Split, int]](), list[tuple[Split, int]]()
    for split in OF_DATA:
        count = len(images_of(data, split).rows)
        own = {d.position for d in drawings if d.split is split and d.position is not None}
        some = range(count) if most is None else {*evenly_spaced(count, most // 2), *own}
        true += [(split, position) for position in sorted(own)]
        others += [(split, position) for position in sorted(set(some) - own)]
    for number, (split, position) in enumerate([*true, *in_any_number(others)]):
        late = seconds is not None and time.monotonic() - began > seconds
        if late and number >= len(true):
            break
        gallery.add(split, [position])
        if progress is not None:
            progress(number + 1, len(true) + len(others))
    gallery.rank(drawings)
    return len(gallery)


def ranks_by_split(drawings: Sequence[Drawing]) -> dict[Split, list[int]]:
    """Ranks by split, for the splits that have any."""
    found = {
        split: [d.rank for d in drawings if d.split is split and d.rank is not None]
        for split in OF_DATA
    }
    return {split: ranks for split, ranks in found.items() if ranks}


def check_shapes(drawings: Iterable[Drawing]) -> None:
    """Parse each generated image of shapes, and set which parts of its caption hold."""
    for drawing in drawings:
        if drawing.split in OF_DATA:  # free prompts need not follow the grammar
            drawing.holds = check(drawing.prompt, np.array(drawing.image)).holds


def shapes_by_split(drawings: Sequence[Drawing]) -> dict[Split, dict[str, Any]]:
    """Results of the checker by split: the count, the fraction that is fully correct, and the
    fraction in which each part of the caption holds."""
    found = {
        split: [d.holds for d in drawings if d.split is split and d.holds is not None]
        for split in OF_DATA
    }
    return {
        split: {
            "count": len(every),
            "all_right": _share([all(holds.values()) for holds in every]),
            "by_part": {
                part: _share([holds[part] for holds in every if part in holds])
                for part in sorted({part for holds in every for part in holds})
            },
        }
        for split, every in found.items()
        if every
    }


def _share(values: Sequence[bool]) -> float:
    return round(sum(values) / len(values), 4)
