"""Text files of others: read, parsed, and where that fails, explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from limner.data.formats.entries import is_unicode
from limner.errors import LimnerError


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without a byte-order mark. Raises LimnerError.

    Bytes that are not UTF-8 become lone surrogates, by which the rows that hold them are known.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LimnerError(
            f"{path} cannot be read: {error.strerror or error}. Check its permissions."
        ) from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise LimnerError(f"{path} is UTF-16. Save the file as UTF-8.")
    return data.decode("utf-8-sig", errors="surrogateescape")


def parse_json(text: str, path: Path, first_line: int = 1) -> Any:
    """JSON that begins at `first_line` of `path`. Raises LimnerError: line, column, what stands."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        stands = text[error.pos :].split("\n")[0][:40]
        before = text[: error.pos].rstrip()[-20:].split("\n")[-1]
        not_utf8 = "" if is_unicode(text) else " It is not UTF-8 either: save the file as UTF-8."
        raise LimnerError(
            f"{path}, line {error.lineno + first_line - 1}, column {error.colno}: this is not "
            f"valid JSON: {error.msg}; there stands {stands or 'the end of the text'!r}, after "
            f"{before!r}. Look there for a missing or extra comma, quote or bracket.{not_utf8}"
        ) from error
    except ValueError as error:  # a number of more digits than Python reads
        raise LimnerError(f"{path}, line {first_line}: {error}") from error
    except RecursionError as error:
        raise LimnerError(f"{path}: the JSON is nested too deeply. Write a flat list.") from error


def kind_of(data: object) -> str:
    if isinstance(data, dict):
        return f"an object with the keys {', '.join(repr(key) for key in list(data)[:5]) or 'none'}"
    return f"a list of {len(data)}" if isinstance(data, list) else f"{str(data)[:40]!r}"


def existing_folder(path: Path) -> Path:
    folder = path.expanduser().absolute()
    if folder.is_file():
        raise LimnerError(f"{folder} is a file. Give the folder it is in: {folder.parent}")
    if not folder.is_dir():
        nearest = next((parent for parent in folder.parents if parent.is_dir()), folder.anchor)
        raise LimnerError(
            f"there is no folder {folder} (the nearest that exists is {nearest}). Correct the "
            "path (data.dataset_path, or --input when preparing), or make the folder."
        )
    return folder
