"""Memorisation: the nearest trained image of each sample, and the worst cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from limner.data.dataset import ImageError
from limner.data.examples import DecodedImages
from limner.data.open import Data
from limner.data.order import evenly_spaced
from limner.evaluation.samples import Drawing, as_tensor
from limner.evaluation.splits import Split
from limner.metrics.memorisation import nearest_trained, verdict

MOST_TRAINED, MOST_HELD_OUT = 20_000, 1_000
"""Pictures that drawings are compared with, evenly spread over all of them."""
MOST_DRAWN = 500
AT_ONCE = 256
WORST = 12
"""Cases that are shown."""


@dataclass(frozen=True)
class Case:
    """A drawing beside the trained picture nearest to it."""

    drawing: Drawing
    trained: int
    """Position of the trained picture."""
    distance: float
    usual: float
    ratio: float
    own: float | None
    """Distance of the caption's real picture to its nearest trained one, if it has one."""
    own_ratio: float | None


def look_for_copies(
    drawings: Sequence[Drawing], data: Data, seed: int, progress: Callable[[int, int], None]
) -> tuple[dict[str, Any], list[Case]]:
    """Compare drawings with trained pictures, beside real pictures that were not trained on.

    Args:
        drawings: drawn ones of one split, best held out: a trained caption may give its picture.
        seed: of the intervals.

    Returns:
        What evaluation.json holds but for the cases, and the worst of these.

    Raises:
        LimnerError: there is nothing to compare.
    """
    drawings = [drawings[i] for i in evenly_spaced(len(drawings), MOST_DRAWN)]
    real, places = _loaded(data.held_out, _with_own(drawings, len(data.held_out.rows)))
    own = [
        places.get(d.position) if d.split is Split.HELD_OUT and d.position is not None else None
        for d in drawings
    ]
    which = evenly_spaced(len(data.trained.rows), MOST_TRAINED)
    positions: list[int] = []

    def batches() -> Iterator[Tensor]:
        for first in range(0, len(which), AT_ONCE):
            batch, good = _loaded(data.trained, which[first : first + AT_ONCE])
            positions.extend(good)
            if batch is not None:
                yield batch

    found = nearest_trained(
        as_tensor(drawings),
        batches(),
        real,
        own,
        seed=seed,
        progress=lambda done: progress(done, len(which)),
    )
    worst = [
        Case(
            drawings[case.drawn],
            positions[case.trained[0]],
            case.distance,
            case.usual,
            case.ratio,
            case.own,
            case.own_ratio,
        )
        for case in found.worst(WORST)
    ]
    about = {
        "split": drawings[0].split,
        "count": len(drawings),
        "trained": len(positions),
        "held_out": 0 if real is None else len(real),
        "ratio": asdict(found.ratio),
        "nearer_than_any": asdict(found.nearer_than_any),
        "nearer_than_5_percent": asdict(found.nearer_than_5_percent),
        "verdict": verdict(found),
        "space": found.space,
    }
    return about, worst


def _with_own(drawings: Sequence[Drawing], count: int) -> list[int]:
    """Held-out pictures to load: some of all, and those that were drawn."""
    own = {d.position for d in drawings if d.split is Split.HELD_OUT and d.position is not None}
    return sorted({*evenly_spaced(count, MOST_HELD_OUT), *own})


def _loaded(images: DecodedImages, which: Sequence[int]) -> tuple[Tensor | None, dict[int, int]]:
    """Those that can be decoded, uint8 [N, S, S, 3] (None: there are none), and where each is."""
    found: list[Tensor] = []
    places: dict[int, int] = {}
    for position in which:
        try:
            found.append(images.load(position))
        except ImageError:  # evaluate lists it
            continue
        places[position] = len(found) - 1
    return (torch.stack(found) if found else None), places
