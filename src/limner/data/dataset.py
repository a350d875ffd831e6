"""ImageDataset: rows of (key, captions), and how to load the image of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, SupportsIndex, overload, runtime_checkable

import numpy as np

from limner.errors import LimnerError
from limner.files.fingerprints import Fingerprints
from limner.messages import shorten_name
from limner.redaction import redact, shown_place


@dataclass(frozen=True, slots=True)
class Row:
    """A picture and its captions."""

    key: str
    """Stable identifier within the data set (a relative path, a code point); hashed for the
    split."""
    captions: tuple[str, ...]
    """At least one; the first is the main caption, the others are paraphrases."""
    held_out: bool | None = None
    """Defined by the data set. None: decided by hash and `data.train_split`."""


class RowSubset(Sequence[Row]):
    """Those rows of a data set that stand at `positions`, int64 [N]; a view, made as asked for."""

    def __init__(self, rows: Sequence[Row], positions: np.ndarray) -> None:
        self.all, self.positions = rows, positions

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, which: SupportsIndex) -> Row: ...
    @overload
    def __getitem__(self, which: slice) -> RowSubset: ...
    def __getitem__(self, which: SupportsIndex | slice) -> Row | RowSubset:
        if isinstance(which, slice):
            return RowSubset(self.all, self.positions[which])
        return self.all[int(self.positions[which])]

    def __iter__(self) -> Iterator[Row]:
        return (self.all[int(position)] for position in self.positions)


@dataclass(frozen=True, slots=True)
class Refused:
    """An unusable row and the reason; always counted and listed, never dropped silently."""

    key: str
    reason: str


class ImageError(LimnerError):
    """A picture that cannot be decoded; the message names its row."""


class UnsupportedFormat(ImageError):
    """A picture in a format that is not read here; the message says what would."""


class DamagedFile(ImageError):
    """A picture in a larger file that cannot be read where it lies."""


class ImageDataset(Protocol):
    """A data set: rows, and a method to load their pictures."""

    name: str
    description: str
    """What the pictures are and what is held out by which rule; shown in the report."""
    refused: list[Refused]

    @property
    def rows(self) -> Sequence[Row]:
        """A list, or a sequence that makes rows on demand, so that a million rows are not a million
        objects."""
        ...

    def load(self, row: Row, image_size: int | tuple[int, int]) -> np.ndarray:
        """Load the picture of a row, uint8 [image_size, image_size, 3] or [height, width, 3].
        Raises ImageError."""
        ...

    def path(self, row: Row) -> Path | None:
        """The user's file that the row's picture is read from; None: there is no such file."""
        ...

    def image(self, row: Row) -> bytes | Path:
        """What the row's picture is stored as, undecoded: a file, or the bytes of one. A built-in
        set draws at any size, and gives a square PNG. Raises ImageError."""
        ...

    def contents(self, rows: Sequence[Row], known: Fingerprints) -> np.ndarray:
        """Hash of what each row's picture is made from, uint8 [N, 16]; differs if that changes."""
        ...


def shown_set(dataset: ImageDataset) -> dict[str, str]:
    """A data set's name and description as they may be shared: only the last component of its
    path."""
    name = dataset.name
    return {"name": shown_place(name), "description": redact(dataset.description, [name])}


@runtime_checkable
class PackedImages(Protocol):
    """An ImageDataset whose pictures lie inside larger files, such as tables or archives."""

    def signature(self, row: Row) -> bytes:
        """Identifies the picture without reading it; differs if its file changes."""
        ...


@runtime_checkable
class Streamed(Protocol):
    """An ImageDataset whose pictures come in pieces, such as one read over the network."""

    windowed: bool
    """Whether pictures are shuffled within windows of pieces, and not all together."""

    def piece_firsts(self, places: np.ndarray) -> np.ndarray:
        """Where the pieces begin among the rows at `places` (ascending): int64 [P + 1]."""
        ...

    def fetch_ahead(self, current: list[int], following: list[int]) -> None:
        """Fetch the pieces that are needed now, and those that are needed next."""
        ...


HELD_OUT = "held_out"
"""A column of this name says, by true or false, which rows are never trained on."""


def require_rows(rows: Sized, refused: list[Refused], folder: Path | str) -> None:
    """Raises LimnerError with the commonest reasons where no row is left."""
    if rows:
        return
    reasons = [row.reason.split(": ", 1)[-1].rstrip(".") for row in refused]  # without the place
    why = "".join(
        f"\n  {count:,} x {reason}; first: {_where(refused[reasons.index(reason)])}"
        for reason, count in Counter(reasons).most_common(3)
    )
    raise LimnerError(
        f"{folder}: none of the {len(refused):,} rows can be used. Fix these and try again:{why}"
        if refused
        else f"{folder}: the metadata has no rows. Add one for each picture."
    )


def _where(row: Refused) -> str:
    """The picture, and where its row stands, if that is known."""
    place, colon, _ = row.reason.partition(": ")
    key = shorten_name(row.key)
    return key if not colon or place == row.key else f"{key} ({place})"
