"""Shuffling of streamed data: shuffle the pieces, then the pictures within a window of pieces.

The classical way, a buffer that is filled from a stream, cannot go on from where it was. This is a
pure function of (seed, count): each pass shuffles the pieces, cuts their sequence into windows of
about so many pictures, and shuffles the pictures of each window. Every picture comes once in every
pass, and at most two windows' pieces are needed at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from limner.data.order import seeded_generator

WINDOW = 4096
"""Pictures that are shuffled together where `data.shuffle_window` does not say."""

Announce = Callable[[list[int], list[int]], None]


class _Pass(NamedTuple):
    """One pass over all rows."""

    pieces: np.ndarray  # int64 [P] in the order of this pass
    starts: np.ndarray  # int64 [P + 1] counts before each of them
    windows: np.ndarray  # int64 [W + 1] the first piece (in this order) of each window


class WindowedShuffle:
    """An `Order` of rows that come in pieces.

    Args:
        firsts: int64 [P + 1], the first row of each piece and the number of rows; a piece may have
            none.
        window: rows that are shuffled together, about: whole pieces, and at least one.
        announce: told, once for each window that is entered, the pieces of it and of the next.
    """

    def __init__(
        self, firsts: np.ndarray, window: int, seed: int, announce: Announce | None = None
    ) -> None:
        sizes = np.diff(firsts)
        self.number = np.flatnonzero(sizes)  # of each piece that has rows
        self.firsts, self.sizes = firsts[:-1][self.number], sizes[self.number]
        self.num_rows, self.window, self.seed = int(firsts[-1]), window, seed
        self.announce = announce
        self._passes: dict[int, _Pass] = {}
        self._rows: dict[tuple[int, int], np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_passes": {}, "_rows": {}}

    def position(self, count: int) -> int:
        epoch, place = divmod(count, self.num_rows)
        plan = self._pass(epoch)
        piece = int(np.searchsorted(plan.starts, place, side="right")) - 1
        window = int(np.searchsorted(plan.windows, piece, side="right")) - 1
        within = place - int(plan.starts[plan.windows[window]])
        return int(self._window(epoch, window)[within])

    def _pass(self, epoch: int) -> _Pass:
        if epoch not in self._passes:
            generator = seeded_generator(self.seed, "pieces", epoch)
            pieces = torch.randperm(len(self.sizes), generator=generator).numpy()
            starts = np.concatenate([[0], np.cumsum(self.sizes[pieces])])
            numbers = starts[:-1] // self.window
            changes = np.flatnonzero(np.diff(numbers, prepend=-1))
            plan = _Pass(pieces, starts, np.append(changes, len(pieces)))
            self._passes = dict([*self._passes.items()][-1:]) | {epoch: plan}
        return self._passes[epoch]

    def _window(self, epoch: int, window: int) -> np.ndarray:
        """Its rows in their order, int64."""
        if (epoch, window) not in self._rows:
            pieces = self._pieces(epoch, window)
            rows = np.concatenate(
                [np.arange(self.firsts[p], self.firsts[p] + self.sizes[p]) for p in pieces]
            )
            generator = seeded_generator(self.seed, "window", epoch, window)
            shuffled = rows[torch.randperm(len(rows), generator=generator).numpy()]
            # Two: the micro-batches of an update may lie on both sides of where one ends.
            self._rows = dict([*self._rows.items()][-1:]) | {(epoch, window): shuffled}
            if self.announce is not None:
                last = window + 2 == len(self._pass(epoch).windows)
                following = (epoch + 1, 0) if last else (epoch, window + 1)
                both = (pieces, self._pieces(*following))
                self.announce(*(self.number[some].tolist() for some in both))
        return self._rows[epoch, window]

    def _pieces(self, epoch: int, window: int) -> np.ndarray:
        plan = self._pass(epoch)
        return plan.pieces[plan.windows[window] : plan.windows[window + 1]]
