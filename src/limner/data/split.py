"""The train and held-out split, by a hash of each key, so that new rows do not move old ones."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from limner.data.dataset import Row
from limner.errors import LimnerError

log = logging.getLogger(__name__)

FEWEST_TO_HOLD_OUT_ONE = 10
"""A smaller data set may have no held-out row at all; from this size on there is always one."""


def is_held_out(key: str, train_split: float) -> bool:
    """Whether a row is held out: a function of its key and `train_split` (0 to 1), nothing else."""
    return _uniform(key, 0) >= train_split


def sampling_rank(key: str) -> float:
    """A row's place in [0, 1) when only some rows are wanted: those of the lowest rank are taken.

    Independent of `is_held_out`, so that a sample holds out the same share; and N + 1 rows are
    the same N rows and one more.
    """
    return _uniform(key, 1)


def in_second_half(key: str) -> bool:
    """Which half of the held-out rows a row is in: settings are chosen on the first, reported on
    the second. Independent of the two above, so that new rows move none."""
    return _uniform(key, 2) >= 0.5


def draws(key: str) -> tuple[float, float]:
    """What decides about a row: its numbers for `is_held_out` and for `sampling_rank`."""
    word = hashlib.sha256(key.encode("utf-8")).digest()
    return _draw(word, 0), _draw(word, 1)


def split_rows(
    rows: Sequence[Row], train_split: float, num_samples: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Indices into `rows`, ascending, int64: (trained, held out); together at most `num_samples`.

    `Row.held_out` decides where it is set, the hash of the key elsewhere. Where that holds out
    nothing although `train_split` < 1, the row of the highest hash (the first to go, were
    `train_split` lowered) is held out if there are at least ten rows. Rows that know all of this
    by heart (`Decided`) are not made for it. Raises LimnerError if nothing is left to train on.
    """
    if num_samples is not None and num_samples < 1:
        raise LimnerError(
            f"data.num_samples is {num_samples}; it must be at least 1. Remove it to use every row."
        )
    own, hashes = _decided(rows)
    used = np.arange(len(rows))
    if num_samples is not None and num_samples < len(rows):
        used = np.sort(np.argsort(hashes[:, 1], kind="stable")[:num_samples])
        log.info(
            "data.num_samples: %d of %d rows are used, chosen by a hash of their keys",
            num_samples,
            len(rows),
        )

    own, place = own[used], hashes[used, 0]
    aside = np.where(own < 0, place >= train_split, own > 0)
    undecided = np.flatnonzero(own < 0)
    enough = len(used) >= FEWEST_TO_HOLD_OUT_ONE
    if not aside.any() and len(undecided) and train_split < 1 and enough:
        aside[undecided[np.argmax(place[undecided])]] = True

    trained, held_out = used[~aside], used[aside]
    if not len(trained):
        raise LimnerError(
            f"no row is left to train on: of {len(rows)} rows, {len(used)} are used "
            f"(data.num_samples: {num_samples}) and {len(held_out)} held out (data.train_split: "
            f"{train_split}). Add pictures, raise data.train_split (0.9 trains on nine rows of "
            "ten) or raise data.num_samples."
        )
    return trained, held_out


@runtime_checkable
class Decided(Protocol):
    """Rows whose hashes were computed before."""

    def decided(self) -> tuple[np.ndarray, np.ndarray]:
        """(`Row.held_out`, int8 [N]: 0, 1, or -1 for None; `draws` of the keys, float64 [N, 2])."""
        ...


def _decided(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(rows, Decided):
        return rows.decided()
    own = np.full(len(rows), -1, dtype=np.int8)
    hashes = np.zeros((len(rows), 2))
    for i, row in enumerate(rows):
        hashes[i] = draws(row.key)
        if row.held_out is not None:
            own[i] = row.held_out
    return own, hashes


def _uniform(key: str, draw: int) -> float:
    """The key's draw number 0 to 3 from [0, 1)."""
    # A picture may be captioned whose name is no UTF-8; it holds lone surrogates.
    return _draw(hashlib.sha256(key.encode("utf-8", errors="surrogatepass")).digest(), draw)


def _draw(word: bytes, number: int) -> float:
    """53 bits of a SHA-256, all that a float holds."""
    return (int.from_bytes(word[8 * number : 8 * number + 8], "big") >> 11) / 2**53
