"""Which pictures are the same, or nearly: found among all pairs without looking at all pairs.

Two pictures are the same where their decoded pixels are. They are nearly the same where one is the
other saved again, compressed, or scaled: scaled to 32 x 32 pixels, no cell of 4 x 4 of them differs
by more than CELL levels of 256 in the mean of a channel, and all of it by no more than RMS. That is
as close as it can be set: of Twemoji's 3,953 pictures at 128 pixels (7.8 million pairs) it flags
two pairs that are not the same pixels, the flags of Norway and of Bouvet Island and of Svalbard,
which are one flag drawn twice; the nearest that differ in truth (a frown against a pout) are 4.5
and 5.1 apart. A crop, a mirrored picture, other brightness or a watermark are not found.

Saving again hardly moves the mean colour, so only pictures whose mean colour is within MEAN levels
are compared. Perceptual hashes were tried first: re-compressed symmetric drawings differ in up to
22 of pHash's 64 bits, since half of their coefficients are zero but for the noise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from types import TracebackType

import numpy as np

from limner.apps.check_data.images import SMALL

CELL, RMS, MEAN = 4.4, 4.0, 2.0
_GRID = 8
_AT_ONCE = 4_000_000  # pairs


class Compared:
    """What pictures are compared by. Small ones lie in a temporary file, 3 kB each; in memory
    there are 200 bytes of each."""

    def __init__(self, count: int) -> None:
        self.pixels = np.zeros((count, 16), dtype=np.uint8)
        self.means = np.full((count, 3), np.nan, dtype=np.float32)
        self.cells = np.zeros((count, _GRID * _GRID * 3), dtype=np.uint8)
        self.there = np.zeros(count, dtype=bool)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115

    def __enter__(self) -> Compared:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def put(self, index: int, pixels: bytes, small: np.ndarray) -> None:
        """small: uint8 [32, 32, 3]."""
        step = SMALL // _GRID
        cells = small.reshape(_GRID, step, _GRID, step, 3).mean((1, 3))
        self.pixels[index] = np.frombuffer(pixels, dtype=np.uint8)
        self.means[index] = cells.mean((0, 1))
        self.cells[index] = np.round(cells).reshape(-1)
        self.there[index] = True
        self._file.seek(index * small.nbytes)
        self._file.write(small.tobytes())

    def small(self, index: int) -> np.ndarray:
        """float32 [32, 32, 3]"""
        size = SMALL * SMALL * 3
        self._file.seek(index * size)
        whole = np.frombuffer(self._file.read(size), dtype=np.uint8)
        return whole.astype(np.float32).reshape(SMALL, SMALL, 3)

    def same(self) -> list[np.ndarray]:
        """Groups of two and more rows with the same pixels, each ascending, by their first."""
        rows = np.flatnonzero(self.there)
        keys = np.ascontiguousarray(self.pixels[rows]).view("V16")[:, 0]
        _, group, counts = np.unique(keys, return_inverse=True, return_counts=True)
        order = np.argsort(group, kind="stable")
        groups = np.split(rows[order], np.cumsum(counts)[:-1])
        return sorted((g for g in groups if len(g) > 1), key=lambda g: int(g[0]))

    def nearly(self, rows: np.ndarray) -> Iterator[tuple[int, int]]:
        """Pairs (earlier, later) of nearly the same pictures among `rows`."""
        for first, second in self._of_one_colour(rows):
            apart = np.abs(self.cells[first].astype(np.int16) - self.cells[second]).max(1)
            for i, j in zip(first[apart <= CELL + 1], second[apart <= CELL + 1], strict=True):
                if self._nearly(int(i), int(j)):
                    yield (int(i), int(j)) if i < j else (int(j), int(i))

    def _of_one_colour(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All pairs whose means are near, some at a time: sorted by green, each with those after
        it in a window."""
        rows = rows[np.argsort(self.means[rows, 1], kind="stable")]
        means = self.means[rows]
        ends = np.searchsorted(means[:, 1], means[:, 1] + MEAN, side="right")
        widths = ends - np.arange(len(rows)) - 1
        start = 0
        while start < len(rows):
            # As many rows as have together about _AT_ONCE pairs, and at least one.
            total = np.cumsum(widths[start : start + _AT_ONCE])
            stop = start + max(1, int(np.searchsorted(total, _AT_ONCE, side="right")))
            count = widths[start:stop]
            first = np.repeat(np.arange(start, stop), count)
            offset = np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
            second = first + 1 + offset
            near = np.abs(means[first, 0] - means[second, 0]) <= MEAN
            near &= np.abs(means[first, 2] - means[second, 2]) <= MEAN
            first, second = rows[first[near]], rows[second[near]]
            for part in range(0, len(first), 50_000):
                yield first[part : part + 50_000], second[part : part + 50_000]
            start = stop

    def _nearly(self, first: int, second: int) -> bool:
        apart = self.small(first) - self.small(second)
        step = SMALL // _GRID
        cells = np.abs(apart.reshape(_GRID, step, _GRID, step, 3).mean((1, 3)))
        return bool(cells.max() <= CELL and np.sqrt(np.square(apart).mean()) <= RMS)
