"""Tables with a column of paths: CSV, TSV, Parquet, JSON, and JSON lines, of any name."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from limner.data.dataset import HELD_OUT, require_rows
from limner.data.formats.columns import Chosen, Columns, has_text
from limner.data.formats.encodings import Guesses
from limner.data.formats.entries import BY_HASH, Entry, Found, collect
from limner.data.formats.options import ReadOptions
from limner.data.formats.parquet_rows import (
    DamagedRows,
    open_parquet_file,
    read_group,
)
from limner.data.formats.separated import named, read_separated, separator_of
from limner.data.formats.text_files import DoubledKeys, beginning, kind_of, parse_json, read_text
from limner.data.image_paths import MAX_PATH, ImagePaths
from limner.errors import LimnerError
from limner.files.system_names import is_system_name

if TYPE_CHECKING:
    import pyarrow

TABLES = (".csv", ".tsv", ".parquet", ".jsonl", ".json", ".txt")
"""What a table's file name may end with. The paths in it are relative to its folder, or to the
one folder in it where the pictures are."""

_AT_ONCE = 10_000  # rows of Parquet
_LOOKED_AT = 50  # rows whose files are looked for in other folders


def read_table_file(path: Path, options: ReadOptions) -> Found:
    """The rows of a table file. Raises LimnerError if it has no such columns or no usable row."""
    path = path.absolute()
    table = read_table(path, options)
    entries = list(table.entries)
    if within := _folder_of_images(entries, path.parent):
        entries = [
            entry._replace(
                image=f"{within}/{entry.image}" if _is_name(entry.image) else entry.image
            )
            for entry in entries
        ]
    rows, refused = collect(entries, path.parent, options.allowed)
    require_rows(rows, refused, path)
    given = any(entry.held_out is not None for entry in entries)
    held_out = f"Held out as the column {HELD_OUT} says; else by hash." if given else BY_HASH
    layout = f"{path.name}, {table.columns}" + (f", pictures in {within}/" if within else "")
    return Found(layout, path.parent, rows, refused, held_out, table.notes)


class Table(NamedTuple):
    """What a table file holds."""

    columns: Chosen
    entries: Iterable[Entry]
    notes: tuple[str, ...] = ()
    """For people: see Found."""


def read_table(path: Path, options: ReadOptions) -> Table:
    """The columns that are used and the pairs of a file that ends with one of TABLES."""
    ending = path.suffix.lower()
    if ending == ".parquet":
        return _parquet(path, options.columns)
    if ending not in TABLES:
        raise LimnerError(f"{path} is not a table; its name must end with {', '.join(TABLES)}")
    guesses = Guesses()
    text = read_text(path, options.encoding, guesses)
    notes = (str(guesses),) if str(guesses) else ()
    if ending in (".csv", ".tsv", ".txt"):
        table = _separated(path, text, options.columns)
    elif ending == ".jsonl":
        table = _objects(_lines(path, text), options.columns, "file_name")
    else:
        table = _objects(_list(path, text), options.columns, "image")
    return table._replace(notes=(*table.notes, *notes))


def has_columns(path: Path, columns: Columns, encoding: str | None = None) -> bool:
    """Whether the first line of a file, or its schema, names a picture's and a caption's column,
    without reading more of it."""
    try:
        if path.suffix.lower() == ".parquet":
            names: Iterable[str] = parquet_schema(path).names
        else:
            line = io.StringIO(beginning(path, encoding), newline="").readline()
            names = next(csv.reader([line], delimiter=separator_of(path, line)), [])
    except (LimnerError, OSError, csv.Error):
        return False
    names = list(names)
    return columns.choose(names).missing(names) is None


def parquet_schema(path: Path) -> pyarrow.Schema:
    """What columns a Parquet file has. Raises LimnerError."""
    with open_parquet_file(path, str(path)) as file:
        return file.schema_arrow


def parquet_holds_bytes(path: Path, columns: Columns) -> bool:
    """Whether a Parquet file holds the pictures themselves, rather than paths of them."""
    schema = parquet_schema(path)
    import pyarrow

    def holds_bytes(kind: pyarrow.DataType) -> bool:
        if pyarrow.types.is_struct(kind):
            return any(holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
        return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))

    image = columns.choose(schema.names).image
    asked = [image] if image in schema.names else schema.names  # of any other name
    return any(holds_bytes(schema.field(name).type) for name in asked)


def _folder_of_images(entries: list[Entry], folder: Path) -> str | None:
    """The one folder in which the pictures are, where a table has only their names; None where
    they are where it says, or in no or several such folders."""
    names = [entry.image for entry in entries[:_LOOKED_AT] if _is_name(entry.image)]
    paths = ImagePaths(folder)
    if not names or any(paths.existing(name)[1] is None for name in names):
        return None
    inner = sorted(p.name for p in folder.iterdir() if p.is_dir() and not is_system_name(p.name))
    having = [
        place for place in inner if any(paths.existing(f"{place}/{n}")[1] is None for n in names)
    ]
    return having[0] if len(having) == 1 else None


def _is_name(image: object) -> bool:
    """Whether this is a plain file name, which lies in no folder."""
    return (
        isinstance(image, str)
        and 0 < len(image.strip()) <= MAX_PATH
        and not set(image) & set("/\\:\0")
    )


def _objects(rows: list[tuple[str, object, str | None]], columns: Columns, image: str) -> Table:
    """Rows as (place, object, fault); the columns are those that most of them have."""
    objects = [row for _, row, _ in rows if isinstance(row, dict)]
    counts = Counter(key for row in objects for key in row)
    chosen = columns.choose(counts, image)
    chosen, note = chosen.filled(lambda name: any(has_text(row.get(name)) for row in objects))

    def entries() -> Iterator[Entry]:
        for place, row, fault in rows:
            if fault is None and not isinstance(row, dict):
                should = f'{{"{chosen.image}": ..., "{chosen.captions[0]}": ...}}'
                fault = f"found {kind_of(row)} instead of {should}"
            if isinstance(row, DoubledKeys):
                for name in sorted(row.doubled & {chosen.image, *chosen.captions}):
                    fault = f"the key '{name}' appears twice; use a list for several captions"
            if fault is None and isinstance(row, dict):
                yield chosen.entry(place, row, every=False)
            else:
                key = row.get(chosen.image) if isinstance(row, dict) else None
                yield Entry(place, key, None, fault)

    return Table(chosen, entries(), (note,) if note else ())


def _list(path: Path, text: str) -> list[tuple[str, object, str | None]]:
    data = parse_json(text, path)
    if not isinstance(data, list):
        coco = isinstance(data, dict) and "annotations" in data
        fix = "This looks like COCO captions; set data.format=coco. " if coco else ""
        raise LimnerError(
            f'{path} contains {kind_of(data)}, not a list of rows. {fix}It must be [{{"image": '
            '"images/image_000001.jpg", "text": "a red apple"}, ...].'
        )
    return [(f"{path.name}, row {number}", row, None) for number, row in enumerate(data, start=1)]


def _lines(path: Path, text: str) -> list[tuple[str, object, str | None]]:
    rows: list[tuple[str, object, str | None]] = []
    # Not splitlines(): captions may hold other line separators, such as U+2028, as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"{path.name}, line {number}"
            try:
                rows.append((place, parse_json(line, path, first_line=number), None))
            except LimnerError as error:
                rows.append((place, None, str(error)))
    return rows


def _separated(path: Path, text: str, columns: Columns) -> Table:
    names, records = read_separated(path, text)
    chosen = columns.choose(names, "file_name")
    where = f"{path}, the first line"
    chosen.require(names, where)
    chosen.refuse_doubled(names, where)
    rows = [(record, named(names, record.cells)) for record in records]
    chosen, note = chosen.filled(lambda name: any(has_text(row.get(name)) for _, row in rows))

    def entries() -> Iterator[Entry]:
        for record, row in rows:
            place = f"{path.name}, line {record.line}"
            if record.fault:
                yield Entry(place, None, None, record.fault)
            else:
                yield chosen.entry(place, row)

    return Table(chosen, entries(), (note,) if note else ())


def _parquet(path: Path, columns: Columns) -> Table:
    names = parquet_schema(path).names
    chosen = columns.choose(names)
    chosen.require(names, str(path))
    chosen.refuse_doubled(names, str(path))
    note = ""
    if chosen.others:
        chosen, note = chosen.filled(lambda name: _column_has_text(path, name))
    wanted = [chosen.image, *chosen.captions, *([HELD_OUT] if HELD_OUT in names else [])]

    def entries() -> Iterator[Entry]:
        number = 0
        with open_parquet_file(path, str(path)) as file:
            for group in range(file.num_row_groups):
                for row in read_group(file, group, list(dict.fromkeys(wanted)), _AT_ONCE):
                    if isinstance(row, DamagedRows):
                        counted = row._replace(first=row.first + 1, last=row.last + 1)  # from 1
                        yield Entry(path.name, None, None, str(counted))
                        number = row.last + 1
                    else:
                        number += 1
                        yield chosen.entry(f"{path.name}, row {number}", row)

    return Table(chosen, entries(), (note,) if note else ())


def _column_has_text(path: Path, name: str) -> bool:
    with open_parquet_file(path, str(path)) as file:
        groups = (
            row
            for group in range(file.num_row_groups)
            for row in read_group(file, group, [name], _AT_ONCE)
        )
        return any(has_text(row[name]) for row in groups if not isinstance(row, DamagedRows))
