"""Tables with a column of paths: CSV, TSV, Parquet, JSON, and JSON lines, of any name."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.data.formats.columns import HELD_OUT, Chosen, Columns
from limner.data.formats.entries import BY_HASH, Entry, Found, collect, require_rows
from limner.data.formats.reading import kind_of, parse_json, read_text
from limner.errors import LimnerError

if TYPE_CHECKING:
    import pyarrow

TABLES = (".csv", ".tsv", ".parquet", ".jsonl", ".json", ".txt")
"""What a table's file name may end with. The paths in it are relative to its folder, or to the
one folder in it where the pictures are."""
PARQUET_NEEDS = "to read Parquet, run: pip install 'limner[data]' (or pip install pyarrow)"

_AT_ONCE = 10_000  # rows of Parquet
_LOOKED_AT = 50  # rows whose files are looked for in other folders


def read_table_file(path: Path, columns: Columns) -> Found:
    """The rows of a table file. Raises LimnerError if it has no such columns or no usable row."""
    path = path.absolute()
    chosen, entries = read_table(path, columns)
    entries = list(entries)
    if within := _folder_of_pictures(entries, path.parent):
        entries = [
            entry._replace(
                image=f"{within}/{entry.image}" if _is_name(entry.image) else entry.image
            )
            for entry in entries
        ]
    rows, refused = collect(entries, path.parent)
    require_rows(rows, refused, path)
    given = any(entry.held_out is not None for entry in entries)
    held_out = f"Held out as the column {HELD_OUT} says; else by hash." if given else BY_HASH
    layout = f"{path.name}, {chosen}" + (f", pictures in {within}/" if within else "")
    return Found(layout, path.parent, rows, refused, held_out)


def read_table(path: Path, columns: Columns) -> tuple[Chosen, Iterable[Entry]]:
    """(the columns that are used, the pairs) of a file that ends with one of TABLES."""
    ending = path.suffix.lower()
    if ending == ".parquet":
        return _parquet(path, columns)
    if ending in (".csv", ".tsv", ".txt"):
        return _separated(path, columns)
    if ending == ".jsonl":
        return _objects(_lines(path), columns, "file_name")
    if ending == ".json":
        return _objects(_list(path), columns, "image")
    raise LimnerError(f"{path} is no table: its name must end with {', '.join(TABLES)}")


def has_columns(path: Path, columns: Columns) -> bool:
    """Whether the first line of a file, or its schema, names a picture's and a caption's column,
    without reading more of it."""
    try:
        if path.suffix.lower() == ".parquet":
            names: Iterable[str] = parquet_schema(path).names
        else:
            with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
                line = file.readline(1_000_000)
            names = next(csv.reader([line], delimiter=_separator(path, line)), [])
    except (LimnerError, OSError, csv.Error):
        return False
    names = list(names)
    return columns.choose(names).missing(names) is None


def parquet_schema(path: Path) -> pyarrow.Schema:
    """What columns a Parquet file has. Raises LimnerError."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise LimnerError(f"{path}: {PARQUET_NEEDS}") from None
    try:
        return parquet.read_schema(path)
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's own are these
        raise LimnerError(f"{path} cannot be read as Parquet: {error}") from None


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


def _folder_of_pictures(entries: list[Entry], folder: Path) -> str | None:
    """The one folder in which the pictures are, where a table has only their names; None where
    they are where it says, or in no or several such folders."""
    names = [entry.image for entry in entries[:_LOOKED_AT] if _is_name(entry.image)]
    if not names or any((folder / name).is_file() for name in names):
        return None
    inner = sorted(path.name for path in folder.iterdir() if path.is_dir())
    having = [place for place in inner if any((folder / place / n).is_file() for n in names)]
    return having[0] if len(having) == 1 else None


def _is_name(image: object) -> bool:
    """Whether this is a plain file name, which lies in no folder."""
    return isinstance(image, str) and bool(image.strip()) and not set(image) & set("/\\:\0")


def _objects(
    rows: list[tuple[str, object, str | None]], columns: Columns, image: str
) -> tuple[Chosen, Iterator[Entry]]:
    """Rows as (place, object, fault); the columns are those that most of them have."""
    counts = Counter(key for _, row, _ in rows if isinstance(row, dict) for key in row)
    chosen = columns.choose(counts, image)

    def entries() -> Iterator[Entry]:
        for place, row, fault in rows:
            if fault is None and not isinstance(row, dict):
                should = f'{{"{chosen.image}": ..., "{chosen.captions[0]}": ...}}'
                fault = f"{kind_of(row)} stands where {should} should"
            if isinstance(row, dict):
                yield chosen.entry(place, row, every=False)
            else:
                yield Entry(place, None, None, fault)

    return chosen, entries()


def _list(path: Path) -> list[tuple[str, object, str | None]]:
    data = parse_json(read_text(path), path)
    if not isinstance(data, list):
        coco = isinstance(data, dict) and "annotations" in data
        fix = "This looks like COCO captions: set data.format: coco. " if coco else ""
        raise LimnerError(
            f"{path} holds {kind_of(data)}, not a list of rows. {fix}"
            'It must be [{"image": "images/image_000001.jpg", "text": "a red apple"}, ...].'
        )
    return [(f"{path.name}, row {number}", row, None) for number, row in enumerate(data, start=1)]


def _lines(path: Path) -> list[tuple[str, object, str | None]]:
    rows: list[tuple[str, object, str | None]] = []
    # Not splitlines(): captions may hold other line separators, such as U+2028, as they are.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            place = f"{path.name}, line {number}"
            try:
                rows.append((place, parse_json(line, path, first_line=number), None))
            except LimnerError as error:
                rows.append((place, None, str(error)))
    return rows


def _separated(path: Path, columns: Columns) -> tuple[Chosen, Iterator[Entry]]:
    text = read_text(path)
    separator = _separator(path, text.partition("\n")[0])
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        names = list(reader.fieldnames or ())
    except csv.Error as error:
        raise _not_csv(path, reader, error) from error
    chosen = columns.choose(names, "file_name")
    chosen.require(names, f"{path}, the first line")

    def entries() -> Iterator[Entry]:
        try:
            for row in reader:
                place = f"{path.name}, line {reader.line_num}"
                if reader.restkey in row:
                    fault = (
                        "there are more cells than columns. "
                        'A text that holds a comma needs quotes: "a red, ripe apple".'
                    )
                    yield Entry(place, None, None, fault)
                else:
                    yield chosen.entry(place, row)
        except csv.Error as error:
            raise _not_csv(path, reader, error) from error

    return chosen, entries()


def _separator(path: Path, first_line: str) -> str:
    """What stands between cells: a tab in a TSV; in a CSV a comma, or what programs write instead
    where numbers have commas."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    if "," not in first_line:
        return next((mark for mark in ";\t|" if mark in first_line), ",")
    return ","


def _not_csv(path: Path, reader: csv.DictReader[str], error: csv.Error) -> LimnerError:
    return LimnerError(
        f"{path}, after line {reader.line_num}: this is not valid CSV: {error}. "
        "Look there for a quote that is opened and not closed."
    )


def _parquet(path: Path, columns: Columns) -> tuple[Chosen, Iterator[Entry]]:
    names = parquet_schema(path).names
    chosen = columns.choose(names)
    chosen.require(names, str(path))
    wanted = [chosen.image, *chosen.captions, *([HELD_OUT] if HELD_OUT in names else [])]

    def entries() -> Iterator[Entry]:
        import pyarrow.parquet as parquet

        number = 0
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(_AT_ONCE, columns=list(dict.fromkeys(wanted))):
                    for row in _rows(batch):
                        number += 1
                        yield chosen.entry(f"{path.name}, row {number}", row)
        except (OSError, ValueError, NotImplementedError) as error:
            raise LimnerError(
                f"{path} cannot be read as Parquet after row {number}: {error}"
            ) from None

    return chosen, entries()


def _rows(batch: pyarrow.RecordBatch) -> list[dict[str, Any]]:
    return batch.to_pylist()
