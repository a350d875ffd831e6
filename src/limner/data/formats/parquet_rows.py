"""Read the rows of a Parquet file; damaged parts only lose their own rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from limner.errors import LimnerError
from limner.messages import shorten

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

NEEDS = 'to read Parquet, run: pip install "limner[data]" (or pip install pyarrow)'
MAX_GROUP_BYTES = 2**33
"""Of the columns of a row group, unpacked: it is read into memory as a whole."""


class DamagedRows(NamedTuple):
    """Rows of a file that cannot be read, counted from 0."""

    first: int
    last: int
    reason: str

    def __str__(self) -> str:
        rows = (
            f"row {self.first:,}"
            if self.first == self.last
            else (f"rows {self.first:,} to {self.last:,}")
        )
        return (
            f"{rows} cannot be read ({self.reason}): the file is damaged there. Download or write "
            "it again"
        )


def is_damage(error: Exception) -> bool:
    """Whether an error of pyarrow's is of what is in the file, and not of the disk or network."""
    import pyarrow

    return isinstance(error, pyarrow.ArrowException) or (
        type(error) is OSError and error.errno is None
    )


def open_parquet_file(
    source: Any,
    name: str,
    metadata: pyarrow.parquet.FileMetaData | None = None,
    ahead: bool = False,
) -> pyarrow.parquet.ParquetFile:
    """A file opened with its pages' checksums, where it has some, verified. Raises LimnerError.

    Args:
        source: a path, or a file that can be sought in.
        name: for people.
        ahead: ask for more than one page at once, as is good far away.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise LimnerError(f"{name}: {NEEDS}") from None
    try:
        return pyarrow.parquet.ParquetFile(
            source,
            metadata=metadata,
            memory_map=False,
            pre_buffer=ahead,
            page_checksum_verification=True,
        )
    except Exception as error:
        if isinstance(source, (str, Path)) or is_damage(error):
            raise LimnerError(
                f"{name} cannot be read as Parquet, or is damaged ({said(error)}): write or "
                "download it again, or remove it"
            ) from None
        raise


def read_group(
    file: pyarrow.parquet.ParquetFile, group: int, columns: list[str], at_once: int
) -> Iterator[dict[str, Any] | DamagedRows]:
    """The rows of a row group, and at its end, where it is damaged, those that cannot be read."""
    number, last = rows_of_group(file, group)
    if reason := too_large(file, group, columns):
        yield DamagedRows(number, last, reason)
        return
    try:
        for batch in file.iter_batches(at_once, row_groups=[group], columns=columns):
            for row in rows_of(batch):
                number += 1
                yield row
    except Exception as error:
        if not is_damage(error):
            raise
        yield DamagedRows(number, last, said(error))


def rows_of_group(file: pyarrow.parquet.ParquetFile, group: int) -> tuple[int, int]:
    """(the first row of a row group, the last), counted in the file."""
    first = sum(file.metadata.row_group(g).num_rows for g in range(group))
    return first, first + file.metadata.row_group(group).num_rows - 1


def rows_of(batch: pyarrow.RecordBatch) -> list[dict[str, Any]]:
    """Rows of Python's values; bytes in a text that are not UTF-8 become lone surrogates."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        import pyarrow

    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        binary = {
            pyarrow.string(): pyarrow.binary(),
            pyarrow.large_string(): pyarrow.large_binary(),
        }
        if column.type in binary:
            cells = column.cast(binary[column.type]).to_pylist()
            columns[name] = [c and c.decode("utf-8", errors="surrogateescape") for c in cells]
            continue
        try:
            columns[name] = column.to_pylist()
        except UnicodeDecodeError:  # within a list: the row is refused for what it is not
            columns[name] = [None] * len(column)
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def too_large(file: pyarrow.parquet.ParquetFile, group: int, columns: list[str]) -> str | None:
    """Why these columns of a row group are not read into memory; None if they may be."""
    about, size = file.metadata.row_group(group), 0
    for number in range(about.num_columns):
        column = about.column(number)
        if any(column.path_in_schema.split(".")[0] == name.split(".")[0] for name in columns):
            size += column.total_uncompressed_size
    if size <= MAX_GROUP_BYTES:
        return None
    return f"{size:,} bytes in one row group, more than the maximum of {MAX_GROUP_BYTES:,}"


def said(error: Exception) -> str:
    """An error of pyarrow's in one line, without what it quotes of the data."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 and text.isprintable() else shorten(text, 200)
