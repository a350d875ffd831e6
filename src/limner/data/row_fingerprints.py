"""Fingerprints of the training rows (20 bytes each), to detect changed data when a run resumes.

A row is known by its key; its captions and the size of its picture's file say whether it is still
the same. No picture is read.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from limner.data.dataset import ImageDataset, Row, RowSubset
from limner.files.fingerprints import digest

ROW = np.dtype([("key", "<u8"), ("captions", "<u4"), ("picture", "<u4"), ("count", "<u4")])
"""Hashes, and of how many rows."""
MOST = 2**22
"""Rows that are kept one by one (80 MiB); more of them are kept in as many sums as BINS."""
BINS = 2**16


@runtime_checkable
class Indexed(Protocol):
    """An ImageDataset that knows the fingerprints of its rows without making the rows."""

    def row_fingerprints(self, positions: np.ndarray) -> np.ndarray:
        """Fingerprints of the rows at `positions`: ROW [N]."""
        ...


def fingerprints_of(dataset: ImageDataset, rows: Sequence[Row]) -> np.ndarray:
    """Of some rows of the set, in their order: ROW [N], or [at most BINS] of more than MOST."""
    if isinstance(dataset, Indexed) and isinstance(rows, RowSubset):
        found = dataset.row_fingerprints(rows.positions)
    else:
        found = np.fromiter((_of(dataset, row) for row in rows), ROW, len(rows))
    return summed(found) if len(found) > MOST else found


def _of(dataset: ImageDataset, row: Row) -> tuple[int, int, int, int]:
    key = int.from_bytes(digest(row.key)[:8], "little")
    captions = zlib.crc32("\0".join(row.captions).encode("utf-8", errors="replace"))
    size = 0  # where the picture has no file of its own
    if (path := dataset.path(row)) is not None:
        try:
            size = os.stat(path).st_size % 2**32
        except OSError:
            size = 2**32 - 1
    return key, captions, size, 1


def summed(rows: np.ndarray) -> np.ndarray:
    """The sums of all rows whose keys fall into the same bin: equal if the rows are, in whatever
    order."""
    bins, where = np.unique(rows["key"] % BINS, return_inverse=True)
    sums = np.zeros(len(bins), ROW)
    sums["key"] = bins
    mixed = {
        name: rows[name] * (rows["key"].astype(np.uint32) | 1) for name in ("captions", "picture")
    }
    for name, values in {**mixed, "count": rows["count"]}.items():
        np.add.at(sums[name], where, values.astype(np.uint32))
    return sums


@dataclass(frozen=True)
class Changes:
    """What became of the rows, in numbers of rows."""

    before: int
    now: int
    new: int = 0
    gone: int = 0
    rewritten: int = 0
    """With other captions."""
    replaced: int = 0
    """With a picture's file of another size."""

    def __str__(self) -> str:
        if self.gone == self.before:
            return f"none of the {self.before:,} pictures it was trained on is there any more"
        named = {
            "new": self.new,
            "gone": self.gone,
            "with other captions": self.rewritten,
            "with another file": self.replaced,
        }
        said = [f"{count:,} {what}" for what, count in named.items() if count]
        return f"of {self.before:,} pictures: {', '.join(said)}" if said else self._of_sums()

    def _of_sums(self) -> str:
        if self.before != self.now:
            return f"{self.before:,} pictures then, {self.now:,} now"
        return f"the same {self.now:,} pictures in another order, or with other captions or files"


def compare(before: np.ndarray, now: np.ndarray) -> Changes | None:
    """What changed between two of `fingerprints_of`; None: nothing."""
    if np.array_equal(before, now):
        return None
    counts = int(before["count"].sum()), int(now["count"].sum())
    if (before["count"] > 1).any() or (now["count"] > 1).any():
        return Changes(*counts)
    _, there, here = np.intersect1d(before["key"], now["key"], return_indices=True)
    old, new = before[there], now[here]
    return Changes(
        *counts,
        new=len(now) - len(here),
        gone=len(before) - len(there),
        rewritten=int((old["captions"] != new["captions"]).sum()),
        replaced=int((old["picture"] != new["picture"]).sum()),
    )


def as_bytes(rows: np.ndarray) -> bytes:
    """A .npy file."""
    file = io.BytesIO()
    np.save(file, rows, allow_pickle=False)
    return file.getvalue()


def from_bytes(data: bytes) -> np.ndarray:
    """Raises ValueError for anything else than `as_bytes` gives."""
    rows: np.ndarray = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    if rows.dtype != ROW or rows.ndim != 1:
        raise ValueError(f"it holds {rows.dtype} {rows.shape}")
    return rows
