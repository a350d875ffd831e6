"""Prompt following: recall of the true image, or the checker of shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from limner.data.builtin.shapes_checker import check
from limner.data.dataset import PictureError
from limner.data.examples import Pictures
from limner.data.open import Data
from limner.data.order import evenly_spaced
from limner.evaluation.samples import Drawing, as_tensor, pictures_of
from limner.evaluation.splits import OF_DATA, Split
from limner.metrics import retrieval


def why_no_recall(data: Data) -> str | None:
    """Recall asks for the one picture that a caption names: why it cannot be asked for, if so."""
    rows = [*data.trained.rows, *data.held_out.rows]
    shared = sum(n for n in Counter(row.captions[0] for row in rows).values() if n > 1)
    if not shared:
        return None
    return (
        f"recall was not measured: {shared:,} of {len(rows):,} captions are shared by several "
        "pictures, so recall has no single right answer"
    )


def rank_drawings(drawings: Sequence[Drawing], data: Data, most: int | None = None) -> int:
    """Rank each drawing's true picture among the pictures of the data set, trained or not.

    Pictures that cannot be decoded are not in the range; drawings of theirs get no rank.

    Args:
        most: pictures in the range at most, those of the drawings always among them; None: all.

    Returns:
        How many pictures the range has.
    """
    known = [d for d in drawings if d.position is not None]
    own = {(d.split, d.position) for d in known}
    places: dict[tuple[Split, int], int] = {}
    seen: list[torch.Tensor] = []
    for split in OF_DATA:
        pictures = pictures_of(data, split)
        for position in _range(pictures, split, own, most):
            try:
                picture = pictures.load(position)
            except PictureError:
                continue
            places[split, position] = len(seen)
            seen.append(retrieval.features(picture[None])[0])
    known = [d for d in known if (d.split, d.position) in places]
    if known:
        truth = [places[d.split, d.position] for d in known if d.position is not None]
        found = retrieval.ranks_by(retrieval.features(as_tensor(known)), truth, torch.stack(seen))
        for drawing, rank in zip(known, found, strict=True):
            drawing.rank = rank
    return len(seen)


def _range(
    pictures: Pictures, split: Split, own: set[tuple[Split, int | None]], most: int | None
) -> list[int]:
    count = len(pictures.rows)
    if most is None:
        return list(range(count))
    return sorted(
        {*evenly_spaced(count, most // 2), *(i for s, i in own if s == split and i is not None)}
    )


def ranks_by_split(drawings: Sequence[Drawing]) -> dict[Split, list[int]]:
    """The ranks of those that have one, of the splits that have any."""
    found = {
        split: [d.rank for d in drawings if d.split is split and d.rank is not None]
        for split in OF_DATA
    }
    return {split: ranks for split, ranks in found.items() if ranks}


def check_drawings(drawings: Sequence[Drawing]) -> dict[Split, dict[str, Any]]:
    """Read each picture of shapes back and compare it with its caption, part by part."""
    found: dict[Split, list[dict[str, bool]]] = {split: [] for split in OF_DATA}
    for drawing in drawings:
        if drawing.split in found:
            result = check(drawing.prompt, np.array(drawing.picture))
            drawing.right = result.all_right
            found[drawing.split].append(result.holds)
    return {
        split: {
            "count": len(readings),
            "all_right": _share([all(holds.values()) for holds in readings]),
            "by_part": {
                part: _share([holds[part] for holds in readings if part in holds])
                for part in sorted({part for holds in readings for part in holds})
            },
        }
        for split, readings in found.items()
        if readings
    }


def _share(values: Sequence[bool]) -> float:
    return round(sum(values) / len(values), 4)
