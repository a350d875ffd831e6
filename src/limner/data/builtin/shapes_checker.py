"""Check which parts of a caption hold in a picture of the data set "shapes".

It asks nothing of where a picture comes from: it finds what is not background, takes each connected
piece as a thing, and reads its colour, shape, size and place. Clean pictures are read without
error, and mild noise or blur, as generated pictures have, is tolerated
(tests/unit/data/test_shapes.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from PIL import Image

from limner.data.builtin.shapes import (
    COLOURS,
    COUNTS,
    GRID,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    draw_shape,
    parse,
)

SMALLEST_AREA = 6.0
"""Pieces below it, in GRID units squared, are specks; the smallest thing drawn has 29."""
AREA_OF_SHAPE = {"circle": np.pi / 4, "square": 1.0, "triangle": 0.5, "cross": 5 / 9}
"""Share of its bounding square that a shape covers."""


@dataclass(frozen=True, slots=True)
class FoundThing:
    """A thing read from a picture; its centre (of its bounding box) in GRID units."""

    thing: Thing
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Which parts of the caption hold. Always "count", "colour" and "shape"; "size" unless things
    are counted; "position" for one thing; "relation" for two."""

    holds: dict[str, bool]
    found: tuple[FoundThing, ...]

    @property
    def all_right(self) -> bool:
        return all(self.holds.values())


def check(scene: Scene | str, image: np.ndarray) -> CheckResult:
    """Compares a scene (or a caption of it) with a square picture, uint8 [H, W, 3]. A caption that
    is not of the grammar raises LimnerError."""
    scene = parse(scene) if isinstance(scene, str) else scene
    found = find_things(image)
    wanted = scene.drawn
    # Which thing is which is not known: take the pairing in which most is right. A picture of many
    # pieces is wrong anyway, so only its largest are tried.
    pairings = permutations(found[:4], min(len(wanted), len(found[:4])))
    readings = [_compare(scene, wanted, pairing) for pairing in pairings]
    best = max(readings, key=lambda holds: sum(holds.values()))
    return CheckResult({"count": len(found) == len(wanted), **best}, found)


def find_things(image: np.ndarray) -> tuple[FoundThing, ...]:
    """The things of a square picture, uint8 [H, W, 3], largest first."""
    scale = image.shape[0] / GRID
    coverage = _coverage(image)
    things = []
    for piece in _connected_pieces(coverage >= 0.5):
        own = np.where(_grown(piece), coverage, 0.0)  # with its antialiased edge
        if own.sum() < SMALLEST_AREA * scale**2:
            continue
        full = piece & (coverage >= 0.8 * coverage[piece].max())  # without the mixed edge
        colour = _nearest_colour(image[full])
        rows, columns = np.nonzero(own)
        top, left = max(rows.min() - 2, 0), max(columns.min() - 2, 0)  # room for other shapes
        own = own[top : rows.max() + 3, left : columns.max() + 3]
        _, shape, side, x, y = max(_fit(shape, own) for shape in SHAPES)
        size = min(SIZES, key=lambda name: abs(SIZES[name] - side / scale))
        found = FoundThing(Thing(colour, shape, size), (left + x) / scale, (top + y) / scale)
        things.append((own.sum(), found))
    things.sort(key=lambda pair: -pair[0])
    return tuple(found for _, found in things)


def _compare(scene: Scene, wanted: Sequence[Thing], found: Sequence[FoundThing]) -> dict[str, bool]:
    complete = len(found) == len(wanted)
    pairs = [(want, got.thing) for want, got in zip(wanted, found, strict=False)]
    holds = {
        "colour": complete and all(want.colour == got.colour for want, got in pairs),
        "shape": complete and all(want.shape == got.shape for want, got in pairs),
    }
    if scene.layout not in COUNTS:
        holds["size"] = complete and all(want.size == got.size for want, got in pairs)
    if scene.layout in POSITIONS:
        holds["position"] = complete and _nearest_position(found[0]) == scene.layout
    if scene.layout in RELATIONS:
        holds["relation"] = complete and _relation(found[0], found[1]) == scene.layout
    return holds


def _nearest_position(found: FoundThing) -> str:
    def distance(position: str) -> float:
        x, y = POSITIONS[position][0]
        return (found.x - x) ** 2 + (found.y - y) ** 2

    return min(POSITIONS, key=distance)


def _relation(first: FoundThing, second: FoundThing) -> str | None:
    """How the first stands to the second, by the larger of the two distances."""
    right, down = second.x - first.x, second.y - first.y
    if max(right, down) <= 0:
        return None
    return "left of" if right > abs(down) else "above" if down > abs(right) else None


def _coverage(image: np.ndarray) -> np.ndarray:
    """How much of each pixel a thing covers, 0 to 1, float64 [H, W].

    A pixel at an edge is a mixture: white + coverage * (colour - white). For each colour that
    equation has a least-squares solution; the colour that leaves the smallest rest is taken. So an
    edge of yellow, which is close to white, is where an edge of black is: at one half."""
    ink = 255.0 - image.astype(np.float64)  # [H, W, 3]
    full_ink = 255.0 - np.array(list(COLOURS.values()), dtype=np.float64)  # [colours, 3]
    coverage = ink @ full_ink.T / (full_ink**2).sum(1)  # [H, W, colours]
    rest = ((ink[..., None, :] - coverage[..., None] * full_ink) ** 2).sum(-1)
    return np.take_along_axis(coverage, rest.argmin(-1)[..., None], -1)[..., 0].clip(0, 1)


def _connected_pieces(mask: np.ndarray) -> list[np.ndarray]:
    """The 4-connected pieces of a boolean [H, W], each as a boolean [H, W]."""
    left = mask.copy()
    pieces = []
    while left.any():
        piece = np.zeros_like(mask)
        piece[np.unravel_index(left.argmax(), mask.shape)] = True
        while (grown := _grown(piece) & mask).sum() > piece.sum():
            piece = grown
        left &= ~piece
        pieces.append(piece)
    return pieces


def _grown(mask: np.ndarray) -> np.ndarray:
    """A boolean [H, W] with the pixels above, below, left and right of its own."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def _nearest_colour(pixels: np.ndarray) -> str:
    """The palette's nearest colour to the median of uint8 [N, 3]."""
    median = np.median(pixels, axis=0)
    return min(COLOURS, key=lambda name: float(((median - np.array(COLOURS[name])) ** 2).sum()))


def _fit(shape: str, own: np.ndarray) -> tuple[float, str, float, float, float]:
    """(overlap, shape, side, x, y): the `shape` with the area and the centroid of a thing's
    coverage [H, W], in pixels, and their overlap (intersection over union of the coverages)."""
    rows, columns = np.indices(own.shape) + 0.5
    area = own.sum()
    side = float((area / AREA_OF_SHAPE[shape]) ** 0.5)
    x, y = float((own * columns).sum() / area), float((own * rows).sum() / area)
    if shape == "triangle":
        y -= side / 6  # its centroid lies two thirds down its box
    oversampling = 8
    canvas = Image.new("L", (own.shape[1] * oversampling, own.shape[0] * oversampling))
    box = [oversampling * edge for edge in (x - side / 2, y - side / 2, x + side / 2, y + side / 2)]
    draw_shape(canvas, shape, box, 255)
    template = np.array(canvas.reduce(oversampling)) / 255
    overlap = float(np.minimum(own, template).sum() / np.maximum(own, template).sum())
    return overlap, shape, side, x, y
