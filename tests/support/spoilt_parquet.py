"""Parquet files, and damage to one of their columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from emoji_formats import emoji


def parquet(path: Path, first: int, count: int, **options: Any) -> Path:
    rows = [
        {"image": {"bytes": one.data, "path": one.name}, "text": f"row {first + n}"}
        for n, one in enumerate(emoji()[first : first + count])
    ]
    options = {"row_group_size": 4, "use_dictionary": False, **options}
    pq.write_table(pa.Table.from_pylist(rows), path, write_page_checksum=True, **options)
    return path


def spoil(path: Path, column: str, group: int) -> None:
    """Other bytes at the end of the only page of a column in a row group."""
    about = pq.read_metadata(path).row_group(group)
    for number in range(about.num_columns):
        part = about.column(number)
        if part.path_in_schema == column:
            data = bytearray(path.read_bytes())
            end = part.data_page_offset + part.total_compressed_size
            data[end - 4 : end] = bytes(byte ^ 255 for byte in data[end - 4 : end])
            path.write_bytes(bytes(data))
            return
    raise AssertionError(column)
