"""A data set of local or remote shards (tar or Parquet files)."""

from __future__ import annotations

import bisect
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, SupportsIndex, overload

import numpy as np

from limner.config import Config
from limner.console import progress_lines
from limner.data import images
from limner.data.dataset import HELD_OUT, Refused, Row, RowSubset, require_rows
from limner.data.own_folder import check_new_cache
from limner.data.row_fingerprints import ROW
from limner.data.streaming.chunk_cache import Files, Pieces
from limner.data.streaming.remote_files import AT_ONCE, Place, changed
from limner.data.streaming.shard_index import Building, Index, open_index
from limner.data.streaming.window_shuffle import WINDOW
from limner.errors import LimnerError
from limner.files.fingerprints import Fingerprints, digest
from limner.messages import plural
from limner.redaction import redact_urls

log = logging.getLogger(__name__)

GIVE_BACK_AFTER = 2**13
"""Rows made after which the pages of the indexes are given back."""


class Kind(Protocol):
    """A way in which shards hold pictures."""

    name: str
    """With all that the index depends on, besides the shard."""
    layout: str
    """For people."""
    direct: bool
    """Whether pictures lie in a shard as they are, so that one of this machine is read in place."""

    def build(self, place: Place, building: Building) -> None:
        """Read a shard and add its samples."""
        ...

    def fetch(self, index: Index, piece: int) -> list[bytes]:
        """The pictures of a piece."""
        ...

    def fetch_one(self, index: Index, number: int) -> bytes | None:
        """One picture by itself; None if only its piece can be read."""
        ...


@dataclass(frozen=True, slots=True)
class ShardRow(Row):
    place: int = -1
    """Its number in the data set."""


class ShardRows(Sequence[Row]):
    """All samples of some indexes, each made when it is asked for."""

    def __init__(self, indexes: Sequence[Index]) -> None:
        self.indexes = indexes
        self.firsts = np.cumsum([0, *map(len, indexes)]).tolist()
        self.made = 0

    def __len__(self) -> int:
        return self.firsts[-1]

    def at(self, place: int) -> tuple[Index, int]:
        """(the index of the shard that it is in, its number there)."""
        shard = bisect.bisect_right(self.firsts, place) - 1
        return self.indexes[shard], place - self.firsts[shard]

    @overload
    def __getitem__(self, which: SupportsIndex) -> ShardRow: ...
    @overload
    def __getitem__(self, which: slice) -> RowSubset: ...
    def __getitem__(self, which: SupportsIndex | slice) -> ShardRow | RowSubset:
        if isinstance(which, slice):
            return RowSubset(self, np.arange(len(self))[which])
        place = int(which)
        place += len(self) if place < 0 else 0
        if not 0 <= place < len(self):
            raise IndexError(f"row {which} of {len(self)}")
        index, number = self.at(place)
        key, captions, held_out = index.sample(number)
        self.made += 1
        if self.made >= GIVE_BACK_AFTER:
            self.made = 0
            for index in self.indexes:
                index.give_back()
        return ShardRow(key, captions, held_out, place)

    def __iter__(self) -> Iterator[Row]:
        return (self[place] for place in range(len(self)))

    def decided(self) -> tuple[np.ndarray, np.ndarray]:
        """What the split depends on: see `split.Decided`."""
        return (
            np.concatenate([index.held_out for index in self.indexes]),
            np.concatenate([index.draws for index in self.indexes]),
        )


class ShardImages:
    """A data set in shards.

    Args:
        windowed: shuffled within windows of pieces (`limner.data.streaming.window_shuffle`).
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        indexes: Sequence[Index],
        pieces: Pieces,
        windowed: bool,
        crop: images.Crop = "center",
    ) -> None:
        self.name, self.kind, self.crop = redact_urls(name), kind, crop
        self.windowed = windowed
        self.rows: Sequence[Row] = (rows := ShardRows(indexes))
        self.all, self.indexes = rows, indexes
        self.refused: list[Refused] = [row for index in indexes for row in index.refused]
        require_rows(self.rows, self.refused, self.name)
        self.notes = [note for index in indexes for note in index.notes]
        self.files, self.pieces = Files(), pieces
        counts = [len(index.piece_at) for index in indexes]
        self.first_pieces = np.cumsum([0, *counts]).tolist()
        captions = sum(index.captions for index in indexes)
        given = any((index.held_out >= 0).any() for index in indexes)
        self.description = (
            f"{len(rows):,} {plural(len(rows), 'picture')} with {captions:,} "
            f"{plural(captions, 'caption')} from {self.name} ({kind.layout}, "
            f"{len(indexes):,} {'shard' if len(indexes) == 1 else 'shards'}); "
            f"{(n := len(self.refused)):,} {plural(n, 'row')} refused. "
            + (f"Held out as {HELD_OUT} says; else by " if given else "Held out by ")
            + "a hash of the shard's name and the sample's key, and data.train_split."
            + _said(self.notes)
        )
        self._ahead()

    def _ahead(self) -> None:
        self.soon: dict[str, int] = {}
        self.asked: set[str] = set()
        self.ahead: threading.Thread | None = None
        self.wanted = threading.Condition()
        self.process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        own = ("soon", "asked", "ahead", "wanted", "process")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._ahead()

    def load(self, row: Row, image_size: images.Size) -> np.ndarray:
        """The row's picture in a size, uint8 [height, width, 3]. Raises ImageError."""
        return images.decode(self.image(row), image_size, self.crop, name=row.key)

    def path(self, row: Row) -> None:
        """It has no file of its own."""

    def image(self, row: Row) -> bytes:
        """The row's picture as it is encoded in its shard."""
        index, number = self._at(row)
        if self._in_place(index):
            return self._read_in_place(index, number)
        if self.process != os.getpid():
            self._ahead()
        piece = index.piece_of(number)
        name = self._name(index, piece)
        # A picture here and there is read by itself; whoever reads two of a piece reads on.
        alone = name not in self.soon and not self.pieces.has(name)
        if alone and self._is_first_of(name):
            found = self.kind.fetch_one(index, number)
            if found is not None:
                return found
        within, fetch = number - int(index.piece_firsts[piece]), partial(self._fetch, index, piece)
        return self.pieces.image(name, within, fetch, self.soon)

    def signature(self, row: Row) -> bytes:
        """What stands for the row's picture as long as its shard is the same."""
        index, number = self._at(row)
        place = index.place
        identity = f"{place.name} {place.size} {place.version} {index.about['kind']}"
        return digest(identity, f"{index.offsets[number]} {index.sizes[number]}")

    def row_fingerprints(self, positions: np.ndarray) -> np.ndarray:
        """See `limner.data.row_fingerprints`; from the indexes' own checksums. A Parquet file does
        not say how large its pictures are."""
        indexes = self.indexes
        found = np.zeros(len(positions), ROW)
        found["key"] = np.concatenate([i.draws[:, 0] for i in indexes])[positions].view("<u8")
        found["captions"] = np.concatenate([i.text_sums for i in indexes])[positions]
        found["picture"] = np.concatenate([i.sizes for i in indexes])[positions] % 2**32
        found["count"] = 1
        return found

    def contents(self, rows: Sequence[Row], known: Fingerprints) -> np.ndarray:
        """The signature of each row, uint8 [N, 16]: to hash the pictures they would all have to be
        read. A shard that changes in any way changes all of its rows."""
        found = np.zeros((len(rows), 16), dtype=np.uint8)
        for i, row in enumerate(rows):
            found[i] = np.frombuffer(self.signature(row), dtype=np.uint8)
        return found

    def piece_firsts(self, places: np.ndarray) -> np.ndarray:
        """Where the pieces begin among the rows at `places` (ascending): int64 [P + 1]."""
        starts = [
            index.piece_firsts[:-1] + first
            for index, first in zip(self.indexes, self.all.firsts, strict=False)
        ]
        return np.append(np.searchsorted(places, np.concatenate(starts)), len(places))

    def fetch_ahead(self, current: list[int], following: list[int]) -> None:
        """Fetch pieces, counted over all shards, while others are in use."""
        if self.process != os.getpid():
            self._ahead()
        with self.wanted:
            self.soon = {
                self._name(*self._piece(number)): number for number in (*current, *following)
            }
            self.asked.clear()
            self.wanted.notify()
            if self.ahead is None:
                self.ahead = threading.Thread(target=self._fetch_ahead, daemon=True)
                self.ahead.start()

    def _fetch_ahead(self) -> None:
        done: dict[str, int] = {}
        while True:
            with self.wanted:
                while self.soon is done:
                    self.wanted.wait()
                done = self.soon
            for name, number in done.items():
                if self.soon is not done:
                    break
                index, piece = self._piece(number)
                if self._in_place(index) or self.pieces.has(name):
                    continue
                try:
                    fetch = partial(self._fetch, index, piece)
                    self.pieces.get(name, fetch, done, wait=False)
                except Exception:  # whoever needs the piece meets it again, and tells of it
                    break

    def _fetch(self, index: Index, piece: int) -> list[bytes]:
        return self.kind.fetch(index, piece)

    def _in_place(self, index: Index) -> bool:
        return self.kind.direct and index.place.is_local

    def _piece(self, number: int) -> tuple[Index, int]:
        shard = bisect.bisect_right(self.first_pieces, number) - 1
        return self.indexes[shard], number - self.first_pieces[shard]

    def _at(self, row: Row) -> tuple[Index, int]:
        assert isinstance(row, ShardRow)
        return self.all.at(row.place)

    def _name(self, index: Index, piece: int) -> str:
        place = index.place
        return digest(place.url, place.version, f"{place.size} {piece}", self.kind.name).hex()

    def _is_first_of(self, name: str) -> bool:
        """Whether nothing of a piece was asked for before, since the last window began."""
        first = name not in self.asked
        self.asked.add(name)
        return first

    def _read_in_place(self, index: Index, number: int) -> bytes:
        offset, size = int(index.offsets[number]), int(index.sizes[number])

        def part(file: Any) -> bytes:
            file.seek(offset)
            return file.read(size)

        found = self.files.read(Path(index.place.url), part)
        if len(found) != size:
            raise LimnerError(changed(index.place))
        return found


def open_shards(
    name: str,
    kind: Kind,
    places: Sequence[Place],
    config: Config,
) -> ShardImages:
    """The data set in these shards; those that were never seen, or changed, are indexed now."""
    check_new_cache(config)
    folder = Path(config.cache.folder)
    names = short_names(places)
    progress, done = progress_lines(log, "shards indexed"), 0

    def index(number: int) -> Index:
        nonlocal done
        place = places[number]
        found = open_index(place, names[number], kind.name, folder / "index", kind.build)
        done += 1
        progress(done, len(places))
        return found

    # Reading from far away waits; reading from here computes, and threads would only take turns.
    far = any(not place.is_local for place in places)
    with ThreadPoolExecutor(AT_ONCE if far else 1) as threads:
        indexes = list(threads.map(index, range(len(places))))
    pieces = Pieces(folder / "pieces", config.cache.pieces_mb * 2**20)
    fetched = far or not kind.direct
    opened = ShardImages(
        name, kind, indexes, pieces, fetched or config.data.shuffle_window is not None
    )
    window = config.data.shuffle_window or WINDOW
    needed = 2 * window * sum(place.size for place in places) // len(opened.rows)
    if fetched and needed > pieces.most_bytes:
        log.info(
            f"cache.pieces_mb: two windows of data.shuffle_window {window:,} pictures take about "
            f"{needed >> 20:,} MiB, and only {config.cache.pieces_mb:,} are allowed; pieces may be "
            "fetched more than once per epoch"
        )
    return opened


def _said(notes: Sequence[str], most: int = 3) -> str:
    more = f" And {len(notes) - most:,} more such notes." if len(notes) > most else ""
    return "".join(f" {note}" for note in notes[:most]) + more


def short_names(places: Sequence[Place]) -> list[str]:
    """Of shards: the file's name, or as much of the path as tells them all apart."""
    shown = [redact_urls(place.url) for place in places]
    parts = [name.split("?")[0].replace("\\", "/").split("/") for name in shown]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    if len(set(shown)) == len(shown):
        return shown
    # They differ in what is not shown of a URL alone.
    return [f"{number}-{place.name}" for number, place in enumerate(places)]
