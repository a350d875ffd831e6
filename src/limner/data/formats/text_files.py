"""Read and parse text files of a data set, with helpful error messages."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from limner.data.formats.encodings import (
    Guesses,
    decode_lines,
    has_mark,
    is_undecoded,
    utf_16_without_mark,
)
from limner.data.regular_files import MAX_TABLE_BYTES, why_not_regular
from limner.errors import LimnerError
from limner.messages import shorten, shorten_name


def read_bytes(path: Path, most: int = MAX_TABLE_BYTES) -> bytes:
    """A regular file of at most `most` bytes. Raises LimnerError."""
    try:
        if reason := why_not_regular(path, most):
            raise LimnerError(f"{path} is not read: {reason}")
        return path.read_bytes()
    except OSError as error:
        raise LimnerError(
            f"{path} cannot be read: {error.strerror or error}. Check its permissions."
        ) from error


def read_text(path: Path, encoding: str | None = None, guesses: Guesses | None = None) -> str:
    """A text file in UTF-8, or as its first bytes say, or as `encoding`, or by a certain guess.

    Bytes that are in none of these become lone surrogates, by which the rows that hold them are
    known. Raises LimnerError.

    Args:
        encoding: `data.encoding`.
        guesses: where a guess is noted, for people.
    """
    data = read_bytes(path)
    if encoding is None and not has_mark(data) and (name := utf_16_without_mark(data)):
        raise LimnerError(
            f"{path} is UTF-16 without a byte order mark. Save it as UTF-8, or set data.encoding "
            f"to {name}."
        )
    return decode_lines(data, encoding, guesses)


def beginning(path: Path, encoding: str | None = None) -> str:
    """The first million bytes of a file, as `read_text` reads them, to see what it is; UTF-16
    without a mark, too, which is refused with advice when it is read. "" where it cannot be."""
    try:
        if why_not_regular(path, MAX_TABLE_BYTES):
            return ""
        with path.open("rb") as file:
            data = file.read(1_000_000)
    except OSError:
        return ""
    if encoding is None and not has_mark(data):
        encoding = utf_16_without_mark(data)
    return decode_lines(data, encoding)


class DoubledKeys(dict[str, Any]):
    """An object of JSON in which keys stand twice: of each the last value counts."""

    doubled: frozenset[str] = frozenset()


def parse_json(text: str, path: Path, first_line: int = 1) -> Any:
    """JSON that begins at `first_line` of `path`; objects with a key twice are `DoubledKeys`.

    Raises LimnerError: line, column, what stands there.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        stands = text[error.pos : error.pos + 40].split("\n")[0]
        before = text[: error.pos].rstrip()[-20:].split("\n")[-1]
        not_utf8 = (
            " It is not valid UTF-8 either; save the file as UTF-8." if is_undecoded(text) else ""
        )
        raise LimnerError(
            f"{path}, line {error.lineno + first_line - 1}, column {error.colno}: not valid JSON: "
            f"{error.msg}; found {stands or 'the end of the text'!r} after {before!r}. Check for a "
            f"missing or extra comma, quote, or bracket.{not_utf8}"
        ) from error
    except ValueError as error:  # a number of more digits than Python reads
        raise LimnerError(f"{path}, line {first_line}: {error}") from error
    except RecursionError as error:
        raise LimnerError(f"{path}: the JSON is nested too deeply. Use a flat list.") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    marked, counts = DoubledKeys(found), Counter(key for key, _ in pairs)
    marked.doubled = frozenset(key for key, count in counts.items() if count > 1)
    return marked


def kind_of(data: object) -> str:
    if isinstance(data, dict):
        keys = ", ".join(shorten(key) for key in list(data)[:5])
        return f"an object with the keys {keys or 'none'}"
    return f"a list of {len(data)}" if isinstance(data, list) else shorten(data)


def existing_folder(path: Path) -> Path:
    folder = path.expanduser().absolute()
    if folder.is_file():
        raise LimnerError(f"{folder} is a file. Use its folder: {folder.parent}")
    if not folder.is_dir():
        nearest = next((parent for parent in folder.parents if parent.is_dir()), folder.anchor)
        raise LimnerError(
            f"folder not found: {shorten_name(str(folder))} (the nearest existing one is "
            f"{nearest}). Correct the path (data.dataset_path, or --input of limner prepare), or "
            "create the folder."
        )
    return folder
