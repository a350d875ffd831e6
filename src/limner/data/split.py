"""Which rows train and which are held out: by a hash of each key, so that new rows move none."""

from __future__ import annotations

import hashlib
import heapq
import logging
from collections.abc import Sequence

from limner.data.rows import Row
from limner.errors import LimnerError

_log = logging.getLogger(__name__)

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


def split_rows(
    rows: Sequence[Row], train_split: float, num_samples: int | None = None
) -> tuple[list[int], list[int]]:
    """Indices into `rows`, ascending: (trained, held out); together at most `num_samples`.

    `Row.held_out` decides where it is set, the hash of the key elsewhere. Where that holds out
    nothing although `train_split` < 1, the row of the highest hash (the first to go, were
    `train_split` lowered) is held out if there are at least ten rows. Raises LimnerError if
    nothing is left to train on.
    """
    if num_samples is not None and num_samples < 1:
        raise LimnerError(
            f"data.num_samples is {num_samples}: give 1 or more, or leave it out to use every row."
        )
    used: Sequence[int] = range(len(rows))
    if num_samples is not None and num_samples < len(rows):
        used = heapq.nsmallest(num_samples, used, key=lambda i: sampling_rank(rows[i].key))
        used = sorted(used)
        _log.info(
            "data.num_samples: %d of %d rows are used, chosen by a hash of their keys",
            num_samples,
            len(rows),
        )

    held_out = [i for i in used if _is_held_out(rows[i], train_split)]
    undecided = [i for i in used if rows[i].held_out is None]
    if not held_out and undecided and train_split < 1 and len(used) >= FEWEST_TO_HOLD_OUT_ONE:
        held_out = [max(undecided, key=lambda i: _uniform(rows[i].key, 0))]

    aside = set(held_out)
    trained = [i for i in used if i not in aside]
    if not trained:
        raise LimnerError(
            f"no row is left to train on: of {len(rows)} rows {len(used)} are used "
            f"(data.num_samples: {num_samples}) and {len(held_out)} held out "
            f"(data.train_split: {train_split}). Add pictures, raise data.train_split (0.9 trains "
            "on nine rows of ten) or raise data.num_samples."
        )
    return trained, held_out


def _is_held_out(row: Row, train_split: float) -> bool:
    return is_held_out(row.key, train_split) if row.held_out is None else row.held_out


def _uniform(key: str, draw: int) -> float:
    """The key's draw number 0 to 3 from [0, 1): 53 bits of its SHA-256, all that a float holds."""
    word = hashlib.sha256(key.encode("utf-8")).digest()[8 * draw : 8 * draw + 8]
    return (int.from_bytes(word, "big") >> 11) / 2**53
