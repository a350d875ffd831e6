"""Aspect ratio buckets: the training size of each picture, so that little is cropped.

Instead of one square there are some sizes of other shapes and about as many pixels (NovelAI 2022,
"aspect ratio bucketing"). A picture goes to the size of the nearest shape, is scaled to cover it,
and is cropped. `limner.data.image_sizes` reads the sizes from the pictures' headers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from limner.errors import LimnerError

STEP = 2**0.2
"""Ratio between neighbouring shapes: no picture is further than 7 % from one, and 4:3, 3:2, and
16:9 are within 2 % of one."""
FEWEST, FEWEST_SHARE = 8, 0.01
"""The fewest pictures of a bucket, and their least share of all; those of smaller ones go to the
next bucket."""


@dataclass(frozen=True)
class Buckets:
    """The bucket sizes, and the bucket of each row.

    Attributes:
        sizes: (height, width) of each bucket, pixels.
        of_row: int16 [N], the bucket of each row.
    """

    sizes: tuple[tuple[int, int], ...]
    of_row: np.ndarray

    def size(self, position: int) -> tuple[int, int]:
        return self.sizes[self.of_row[position]]

    def counts(self) -> list[int]:
        """Rows in each bucket."""
        return np.bincount(self.of_row, minlength=len(self.sizes)).tolist()

    def members(self) -> list[np.ndarray]:
        """The positions of each bucket's rows, ascending."""
        return [np.flatnonzero(self.of_row == bucket) for bucket in range(len(self.sizes))]

    def only(self, positions: Sequence[int] | np.ndarray) -> Buckets:
        """The same sizes for some of the rows."""
        return Buckets(self.sizes, self.of_row[np.asarray(positions, dtype=np.int64)])


def sizes_around(image_size: int, unit: int, max_ratio: float) -> tuple[tuple[int, int], ...]:
    """The sizes (height, width) that `auto` chooses from, the widest last.

    Shapes are STEP apart, from tall to wide; sides are whole units. Each has at most
    `image_size` squared pixels, so that none needs more memory than the square does.

    Args:
        unit: pixels of one patch.
        max_ratio: longer over shorter side, at most.
    """
    side = image_size // unit
    fitting = [
        (max(1, side**2 // long), long)
        for long in range(side, math.floor(side * math.sqrt(max_ratio) + 1e-9) + 2)
        if long <= max_ratio * max(1, side**2 // long) + 1e-9
    ]
    wide = []
    for number in range(math.floor(math.log(max_ratio) / math.log(STEP) + 1e-9) + 1):
        wanted = number * math.log(STEP)
        wide.append(min(fitting, key=lambda hw: abs(math.log(hw[1] / hw[0]) - wanted)))
    wide = list(dict.fromkeys(wide))
    both = [(w, h) for h, w in reversed(wide)] + wide
    return tuple((h * unit, w * unit) for h, w in dict.fromkeys(both))


def nearest(shapes: np.ndarray, sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """The bucket of the nearest shape, by the logarithm of width over height: int16 [N].

    Args:
        shapes: [N, 2], height and width of each picture.
    """
    at = np.log(shapes[:, 1] / shapes[:, 0])
    there = np.array([math.log(width / height) for height, width in sizes])
    return np.abs(at[:, None] - there[None]).argmin(axis=1).astype(np.int16)


def visible(shapes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The share of each picture that is left after scaling and cropping it to its size, float64
    [N].

    Args:
        shapes, sizes: [N, 2], height and width; or one size [2] for all.
    """
    a, b = shapes[..., 1] / shapes[..., 0], sizes[..., 1] / sizes[..., 0]
    return np.minimum(a / b, b / a)


def with_enough(shapes: np.ndarray, sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The sizes that have enough pictures: the smallest bucket is removed until all do."""
    left = list(sizes)
    fewest = max(FEWEST, FEWEST_SHARE * len(shapes))
    while len(left) > 1:
        counts = np.bincount(nearest(shapes, left), minlength=len(left))
        # Of equally small ones, the more extreme shape is removed.
        smallest = min(
            range(len(left)), key=lambda i: (counts[i], -abs(math.log(left[i][1] / left[i][0])))
        )
        if counts[smallest] >= fewest:
            break
        left.pop(smallest)
    return left


def ratio_of(text: float | str) -> float:
    """Width over height, as 1.5 or "3:2". Raises LimnerError."""
    width, colon, height = str(text).partition(":")
    try:
        ratio = float(width) / float(height if colon else 1)
    except (ValueError, ZeroDivisionError):
        ratio = math.nan
    if not 1 / 16 <= ratio <= 16:
        raise LimnerError(
            f"--aspect_ratio {text}: must be width over height, such as 3:2 or 1.5, up to 16:1"
        )
    return ratio


def size_for(
    ratio: float, trained: Sequence[tuple[int, int]], image_size: int, unit: int
) -> tuple[int, int]:
    """The size (height, width) to sample at for this shape: the nearest trained one; for a model
    that only knows squares, one with about as many pixels.

    Args:
        ratio: width over height.
        trained: the trained sizes; none: squares only.
    """
    if trained:
        return trained[int(nearest(np.array([[1.0, ratio]]), trained)[0])]
    height = max(1, round(image_size / math.sqrt(ratio) / unit)) * unit
    return height, max(1, round(height * ratio / unit)) * unit


def told(buckets: Buckets, shapes: np.ndarray, image_size: int) -> list[str]:
    """Sentences about the sizes with their counts, and how much is cropped with and without
    them."""
    each = ", ".join(
        f"{width} x {height}: {count:,}"
        for (height, width), count in zip(buckets.sizes, buckets.counts(), strict=True)
    )
    now = visible(shapes, np.array(buckets.sizes)[buckets.of_row])
    square = visible(shapes, np.array([image_size, image_size]))
    return [
        f"{len(buckets.sizes)} sizes of pictures (width x height): {each}",
        f"{1 - now.mean():.1%} of a picture is cropped on average, compared with "
        f"{1 - square.mean():.1%} with square crops",
    ]
