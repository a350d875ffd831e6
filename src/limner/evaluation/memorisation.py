"""Memorisation: the nearest training image of each generated image, and the worst cases."""

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
"""Maximum numbers of images to compare with, evenly spaced."""
MOST_DRAWN = 500
AT_ONCE = 256
WORST = 12
"""Number of cases shown."""


@dataclass(frozen=True)
class Case:
    """A generated image and its nearest training image."""

    drawing: Drawing
    trained: int
    """Index of the training image."""
    distance: float
    usual: float
    ratio: float
    own: float | None
    """Distance of the caption's real image to its nearest training image, if known."""
    own_ratio: float | None


def look_for_copies(
    drawings: Sequence[Drawing], data: Data, seed: int, progress: Callable[[int, int], None]
) -> tuple[dict[str, Any], list[Case]]:
    """Compare generated images with training images, relative to held-out images.

    Args:
        drawings: generated images of one split, preferably held out: reproducing the image of a
            training caption may be correct.
        seed: of the confidence intervals.

    Returns:
        The results for evaluation.json, and the worst cases.

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
    """Held-out images to load: an even selection, and those of the prompts."""
    own = {d.position for d in drawings if d.split is Split.HELD_OUT and d.position is not None}
    return sorted({*evenly_spaced(count, MOST_HELD_OUT), *own})


def _loaded(images: DecodedImages, which: Sequence[int]) -> tuple[Tensor | None, dict[int, int]]:
    """The images that can be decoded, uint8 [N, S, S, 3] or None, and the index of each."""
    found: list[Tensor] = []
    places: dict[int, int] = {}
    for position in which:
        try:
            found.append(images.load(position))
        except ImageError:  # evaluate lists it
            continue
        places[position] = len(found) - 1
    return (torch.stack(found) if found else None), places
