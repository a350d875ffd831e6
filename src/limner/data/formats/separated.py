"""Read CSV and TSV files, with standard quoting or without quoting.

A caption that begins with a quote (`"Hello" she said`, or `12" ruler` in quotes of one side only)
is no quoted cell; read as one it would swallow the rows that follow.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from limner.data.images import EXTENSIONS
from limner.errors import LimnerError

csv.field_size_limit(2**31 - 1)  # a cell may hold a whole picture; what is used of it is checked
MOST_LINES = 1000
"""Lines of a quoted cell; a longer one is taken for a quote that was never closed."""
UNCLOSED = (
    "the quote that opens in this line is not closed before the next row; close it, or write it "
    'twice ("") if it belongs to the text'
)
MORE_CELLS = (
    'there are more cells than columns. A text with a comma needs quotes: "a red, ripe apple".'
)


class Record(NamedTuple):
    """One row."""

    line: int
    """The last line that it stands on, from 1."""
    cells: list[str]
    fault: str | None = None
    """Why it cannot be used; it then has no cells."""


def read_separated(path: Path, text: str) -> tuple[list[str], list[Record]]:
    """(names of the columns, the rows below; empty lines are left out). Raises LimnerError."""
    lines = list(io.StringIO(text, newline=""))
    separator = separator_of(path, lines[0] if lines else "")
    try:
        names = next(csv.reader(lines[:1], delimiter=separator, strict=True), [])
    except csv.Error as error:
        raise LimnerError(
            f"{path}, line 1: the column names are not valid CSV ({error}). Check for a quote that "
            "is not closed."
        ) from None
    body = lines[1:]
    rows = _all_at_once(body, names, separator)
    if rows is None and separator == "\t":
        rows = _without_quotes(body, names, separator)
    return names, rows if rows is not None else list(_line_by_line(body, names, separator))


def separator_of(path: Path, first_line: str) -> str:
    """What stands between cells: a tab in a TSV; in a CSV a comma, or what programs write instead
    where numbers have commas."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    if "," not in first_line:
        return next((mark for mark in ";\t|" if mark in first_line), ",")
    return ","


def _all_at_once(lines: Sequence[str], names: list[str], separator: str) -> list[Record] | None:
    """All rows, by the standard; None if that fails, or if a cell may have swallowed rows."""
    reader = csv.reader(lines, delimiter=separator, strict=True)
    records, before = list[Record](), 0
    try:
        for cells in reader:
            following = lines[before + 1 : reader.line_num]
            if any(_is_row(line, lines[before], names, separator) for line in following):
                return None
            before = reader.line_num
            if cells:
                records.append(_record(before + 1, cells, names))
    except csv.Error:
        return None
    return records


def _without_quotes(lines: Sequence[str], names: list[str], separator: str) -> list[Record] | None:
    """All rows with quotes as plain letters; None if they do not all have as many cells as there
    are columns."""
    records = []
    for number, line in enumerate(lines, start=2):
        if line.strip():
            cells = _plain(line, separator)
            if len(cells) != len(names):
                return None
            records.append(Record(number, cells))
    return records


def _line_by_line(lines: Sequence[str], names: list[str], separator: str) -> Iterator[Record]:
    """Rows as far as they can be told apart; those that cannot are faults, each with its line."""
    first = 0
    while first < len(lines):
        if not lines[first].strip():
            first += 1
            continue
        record, taken = _one(lines, first, names, separator)
        yield record
        first += taken


def _one(lines: Sequence[str], first: int, names: list[str], separator: str) -> tuple[Record, int]:
    """(the row that begins at a line, how many lines it takes)."""
    last = first
    while _open(lines[first : last + 1], separator):
        last += 1
        over = last >= len(lines) or last - first > MOST_LINES
        if over or _is_row(lines[last], lines[first], names, separator):
            plain = _plain(lines[first], separator)
            if separator == "\t" and len(plain) == len(names):
                return Record(first + 2, plain), 1
            return Record(first + 2, [], UNCLOSED), 1
    taken = last - first + 1
    try:
        (cells,) = csv.reader(lines[first : last + 1], delimiter=separator, strict=True)
    except (csv.Error, ValueError):
        cells = _plain(lines[first], separator)
        if taken > 1 or len(cells) != len(names):
            fault = (
                "a cell begins with a quote and continues after the closing quote, giving "
                f'{len(cells)} cells for {len(names)} columns; write "" for a quote within quotes'
            )
            return Record(first + 2, [], fault), 1
    return _record(last + 2, cells, names), taken


def _record(line: int, cells: list[str], names: list[str]) -> Record:
    if len(cells) > len(names):
        return Record(line, [], MORE_CELLS)
    return Record(line, cells)


def _open(lines: Sequence[str], separator: str) -> bool:
    """Whether a quoted cell goes on after these lines."""
    try:
        next(csv.reader(lines, delimiter=separator, strict=True), None)
    except csv.Error as error:
        return "end of data" in str(error)
    return False


def _is_row(line: str, first: str, names: list[str], separator: str) -> bool:
    """Whether a line looks like a row by itself, and not like more of the cell that `first` opens:
    its cells are as many as there are columns, one of them the name of a picture. With a single
    quote (`c.png,a screen of 12"`), which may be what closes that cell, the name must also stand
    in the column in which `first` has one."""
    cells = _plain(line, separator)
    if len(cells) < max(2, len(names)):
        return False
    images = _images(cells)
    if line.count('"') % 2 == 0:
        return bool(images) and not _open([line], separator)
    prose = {i for i, cell in enumerate(cells) if cell[:1].isspace()}  # "one, then x.png"
    return bool((images - prose) & _images(_plain(first, separator)))


def _images(cells: Sequence[str]) -> set[int]:
    """In which of them the name of a picture stands."""
    endings = (os.path.splitext(cell.strip(' "\r\n'))[1].lower() for cell in cells)
    return {i for i, ending in enumerate(endings) if ending in EXTENSIONS}


def _plain(line: str, separator: str) -> list[str]:
    return line.rstrip("\r\n").split(separator)


def named(names: Sequence[str], cells: Sequence[str]) -> dict[str, str | None]:
    """A row by its columns; cells that are missing at its end are None."""
    if len(cells) >= len(names):
        return dict(zip(names, cells, strict=False))
    return dict(zip(names, [*cells, *[None] * (len(names) - len(cells))], strict=True))
