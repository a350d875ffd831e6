"""Parquet files that contain the pictures as bytes, as data sets on the Hub are stored.

A row group is read as a whole: it is a piece. For the index only the columns of the captions are
read, and of the pictures nothing at all.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.config import Config
from limner.data.dataset import HELD_OUT, DamagedFile
from limner.data.formats.columns import Chosen, Columns, has_text
from limner.data.formats.entries import check_caption
from limner.data.formats.parquet_rows import (
    NEEDS,
    DamagedRows,
    is_damage,
    open_parquet_file,
    read_group,
    rows_of_group,
    said,
    too_large,
)
from limner.data.streaming.remote_files import Place, find, is_url, open_place, patiently
from limner.data.streaming.shard_index import Building, Index
from limner.data.streaming.sharded_dataset import ShardImages, open_shards
from limner.errors import LimnerError
from limner.files.system_names import is_system_name

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

ENDINGS = (".parquet",)
AT_ONCE = 1000  # rows whose captions are looked at together
OPEN = 4
"""Parquet files whose contents' list is kept by a process."""


def open_parquet(config: Config) -> ShardImages:
    """The Parquet files at `data.dataset_path`: a file, a folder, a pattern, or a URL.

    Of a folder whose files are named after splits (train-00000-of-00004.parquet, as on the Hub)
    those of `data.dataset_split` are taken. Raises LimnerError.
    """
    path = config.data.dataset_path
    within = Path(path).expanduser() / "data"
    here = (file.name for file in within.parent.glob("*.parquet"))
    if not is_url(path) and within.is_dir() and all(map(is_system_name, here)):
        path = str(within)
    return open_parquet_files(config, find(path, ENDINGS), config.data.dataset_path)


def open_parquet_files(config: Config, places: list[Place], name: str) -> ShardImages:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise LimnerError(f"{name}: {NEEDS}") from None
    return open_shards(
        name, Parquet(Columns.of(config)), of_split(places, config.data.dataset_split), config
    )


def of_split(places: list[Place], split: str) -> list[Place]:
    """Those files that are named after the split; all, if none is named after any."""
    named = {place: found[1] for place in places if (found := _SPLIT.match(place.name))}
    if len(named) < len(places):
        return places
    chosen = [place for place, name in named.items() if name == split]
    if not chosen:
        raise LimnerError(
            f"data.dataset_split: there are no files of split {split!r}; available: "
            f"{', '.join(sorted(set(named.values())))}"
        )
    return chosen


_SPLIT = re.compile(r"(\w+)-\d{5}-of-\d{5}")


class Parquet:
    """Parquet as a `Kind` of shards."""

    layout = "Parquet with the pictures in it"
    direct = False

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.name = f"parquet {json.dumps([columns.image, columns.captions])}"
        self._start()

    def __getstate__(self) -> dict[str, Any]:
        return {"columns": self.columns, "name": self.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _start(self) -> None:
        self.lock = threading.Lock()
        self.metadata: OrderedDict[str, pyarrow.parquet.FileMetaData] = OrderedDict()
        self.damaged: dict[tuple[str, int], str] = {}

    def build(self, place: Place, building: Building) -> None:
        try:
            opened = self._open(place)
        except LimnerError as error:
            building.refuse("(the whole file)", str(error))
            return
        with opened as file:
            schema = file.schema_arrow
            chosen, image = self._choose(schema, place)
            if chosen.others:
                chosen, note = chosen.filled(lambda name: _has_text(file, name))
                building.notes += [f"{building.name}: {note}"] if note else []
            names = [*chosen.captions]
            names += [HELD_OUT] if HELD_OUT in schema.names else []
            number = 0
            for group in range(file.num_row_groups):
                building.piece(group)
                for row in self._rows(file, group, image, list(dict.fromkeys(names))):
                    if isinstance(row, DamagedRows):
                        building.refuse(f"(rows {row.first} to {row.last})", f"{place.url}: {row}")
                        number = row.last + 1
                        continue
                    values, absent = row
                    self._add(building, chosen, values, number, absent)
                    number += 1
        _give_back()

    def _rows(
        self, file: pyarrow.parquet.ParquetFile, group: int, image: str, names: list[str]
    ) -> Iterator[tuple[dict[str, Any], bool] | DamagedRows]:
        """(a row's captions, whether it has no picture) of a group, as far as it can be read."""
        first, last = rows_of_group(file, group)
        if reason := too_large(file, group, [image]):
            yield DamagedRows(first, last, reason)
            return
        try:
            absent = _absent(file, group, image)
        except Exception as error:
            if not is_damage(error):
                raise
            yield DamagedRows(first, last, said(error))
            return
        for number, row in enumerate(read_group(file, group, names, AT_ONCE), start=first):
            yield row if isinstance(row, DamagedRows) else (row, number in absent)

    def _add(
        self, building: Building, chosen: Chosen, values: Any, number: int, absent: bool
    ) -> None:
        key = str(number)
        entry = chosen.entry(f"row {number}", {chosen.image: None} | values)
        texts = entry.text if isinstance(entry.text, list) else [entry.text]
        captions, faults = dict[str, None](), list[str]()
        if absent:
            faults.append("there is no picture")
        elif entry.fault:
            faults.append(entry.fault)
        elif not texts:
            faults.append("the list of captions is empty")
        else:
            for caption in texts:
                if fault := check_caption(caption):
                    faults.append(fault)
                else:
                    captions[caption.strip()] = None
        if captions:
            building.add(key, tuple(captions), number, held_out=entry.held_out)
        if faults:
            building.refuse(key, "; ".join(faults))

    def fetch(self, index: Index, piece: int) -> list[bytes]:
        """The pictures of a row group. Raises DamagedFile: of all its rows."""
        first, last = index.piece_firsts[piece : piece + 2].tolist()
        group = int(index.piece_at[piece])
        damaged = self.damaged.get((index.place.url, group))

        def read() -> list[bytes] | str:
            with self._open(index.place) as file:
                before, _ = rows_of_group(file, group)
                _, image = self._choose(file.schema_arrow, index.place)
                try:
                    column = file.read_row_group(group, columns=[image]).column(0)
                except Exception as error:
                    if not is_damage(error):
                        raise
                    return said(error)
                found = []
                for row in (index.offsets[first:last] - before).tolist():
                    cell = column[row]
                    cell = cell["bytes"] if hasattr(cell, "keys") else cell
                    found.append(cell.as_py() or b"")
                return found

        if damaged is None:
            found = patiently(index.place.url, read) if not index.place.is_local else read()
            _give_back()
            if not isinstance(found, str):
                return found
            damaged = self.damaged[index.place.url, group] = found
        raise DamagedFile(
            f"{index.place.url}, row group {group}: its pictures cannot be read ({damaged}): the "
            "file is damaged there. Download or write it again"
        )

    def fetch_one(self, index: Index, number: int) -> None:
        """A row group is compressed as a whole."""

    def _open(self, place: Place) -> pyarrow.parquet.ParquetFile:
        """Raises LimnerError if it is no Parquet."""
        known = self.metadata.get(place.url)
        source: Any = place.url if place.is_local else open_place(place)
        file = open_parquet_file(source, place.url, known, ahead=not place.is_local)
        with self.lock:
            self.metadata[place.url] = file.metadata
            while len(self.metadata) > OPEN:
                self.metadata.popitem(last=False)
        return file

    def _choose(self, schema: pyarrow.Schema, place: Place) -> tuple[Chosen, str]:
        """(the columns, the column of the bytes). Raises LimnerError."""
        import pyarrow

        chosen = self.columns.choose(schema.names)
        if self.columns.image is None and chosen.image not in schema.names:
            held = [field.name for field in schema if _holds_bytes(field.type)]
            chosen = Chosen(held[0], chosen.captions) if len(held) == 1 else chosen
        chosen.require(schema.names, place.url)
        chosen.refuse_doubled(schema.names, place.url)
        kind = schema.field(chosen.image).type
        if not _holds_bytes(kind):
            raise LimnerError(
                f"{place.url}: the column '{chosen.image}' is {kind}, not the bytes of pictures; "
                "set data.image_column to another"
            )
        return chosen, f"{chosen.image}.bytes" if pyarrow.types.is_struct(kind) else chosen.image


def _holds_bytes(kind: pyarrow.DataType) -> bool:
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _has_text(file: pyarrow.parquet.ParquetFile, name: str) -> bool:
    for group in range(file.num_row_groups):
        for row in read_group(file, group, [name], AT_ONCE):
            if not isinstance(row, DamagedRows) and has_text(row[name]):
                return True
    return False


def _absent(file: pyarrow.parquet.ParquetFile, group: int, image: str) -> set[int]:
    """The rows of a group, counted in the file, without a picture. The pictures are read only if
    the file's own statistics do not say that there are all."""
    about = file.metadata.row_group(group)
    before, _ = rows_of_group(file, group)
    for number in range(about.num_columns):
        column = about.column(number)
        if column.path_in_schema == image:
            statistics = column.statistics
            if statistics is not None and statistics.has_null_count and not statistics.null_count:
                return set()
    column = file.read_row_group(group, columns=[image]).column(0)
    column = column.combine_chunks()
    if hasattr(column, "field"):
        column = column.field(0)
    return {before + row for row in range(len(column)) if not column[row].is_valid}


def _give_back() -> None:
    import pyarrow

    pyarrow.default_memory_pool().release_unused()
