"""Read JSON and YAML from untrusted files, with limits.

Files are read only up to a size. Nesting, numbers, or references that would fill memory or end in a
traceback raise a LimnerError that names the file.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from limner.errors import LimnerError
from limner.messages import shorten_name

MOST_BYTES = 2**24
"""Largest file that is read as a whole, such as a manifest."""
MOST_YAML_BYTES = 2**20
"""Largest configuration: parsing takes seconds per megabyte."""
MOST_NODES = 100_000
"""The most values in a configuration, counting those behind references (`*name`) each time."""


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """Read a regular UTF-8 file of at most `most` bytes.

    Raises:
        LimnerError: it is another kind of file, too large, or cannot be read.
        FileNotFoundError: it is not there.
    """
    shown = shorten_name(str(path))
    try:
        with path.open("rb") as file:
            if not stat.S_ISREG(path.stat().st_mode):
                raise LimnerError(f"{shown} is not a regular file")
            data = file.read(most + 1)
        if len(data) > most:
            raise LimnerError(
                f"{shown} has more than {most:,} bytes; it is damaged, or another kind of file"
            )
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LimnerError(
            f"{shown} is not valid UTF-8: byte {error.start:,} is {data[error.start]:#04x}"
        ) from None
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        if isinstance(error, LimnerError):
            raise
        raise LimnerError(
            f"{shown} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None


def read_json(path: Path, most: int = MOST_BYTES) -> Any:
    """As `read_text`, parsed. Raises LimnerError, FileNotFoundError."""
    return parse_json(read_text(path, most), shorten_name(str(path)), most)


def parse_json(text: str, where: str, most: int = MOST_BYTES) -> Any:
    """Raises LimnerError, beginning with `where`."""
    if len(text) > most:
        raise LimnerError(f"{where} has more than {most:,} characters: it is damaged")
    try:
        return json.loads(text)
    except RecursionError:
        raise LimnerError(f"{where} is not valid JSON: it is nested too deeply") from None
    except ValueError as error:  # syntax, or a number with more digits than Python reads
        raise LimnerError(f"{where} is not valid JSON: {error}") from None


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file of any length with one per line. Other lines are skipped, such as
    a last line that a crash cut short, or one of more than `MOST_BYTES` characters.

    Raises:
        OSError: it cannot be read.
    """
    # Only line feeds end lines: text in JSON may contain other line separators.
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        while line := file.readline(MOST_BYTES):
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict):
                yield found


def read_yaml(path: Path) -> Any:
    """As `read_text`, parsed, of plain values only. Raises LimnerError, FileNotFoundError."""
    return parse_yaml(read_text(path, MOST_YAML_BYTES), shorten_name(str(path)))


def parse_yaml(text: str, where: str) -> Any:
    """Raises LimnerError, beginning with `where`."""
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        # Before anything is built from it: merging (`<<`) copies what references point to.
        if _size(node) > MOST_NODES:
            raise LimnerError(
                f"{where} contains more than {MOST_NODES:,} values, counting each use of an alias "
                "(&name, *name), or a value that contains itself; write them out"
            )
        return None if node is None else loader.construct_document(node)
    except LimnerError:
        raise
    except RecursionError:
        raise LimnerError(f"{where} is not valid YAML: it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
        # Not only YAMLError: the 99th of a month, !!bool maybe, numbers with 5,000 digits, ...
        raise LimnerError(f"{where} is not valid YAML: {error}") from None


def _size(node: yaml.Node | None) -> float:
    """The number of values when each reference is followed; infinite if they form a cycle."""
    sizes: dict[int, float] = {}
    waiting: list[tuple[Any, bool]] = [(node, False)]
    while waiting:
        one, is_counted = waiting.pop()
        inner = _inner(one)
        if is_counted:
            sizes[id(one)] = 1 + sum(sizes.get(id(n), 1.0) for n in inner)
        elif id(one) not in sizes and inner:
            sizes[id(one)] = float("inf")  # until it is counted: meeting it before that is a cycle
            waiting.append((one, True))
            waiting += [(n, False) for n in inner]
    return sizes.get(id(node), 1.0)


def _inner(node: yaml.Node | None) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []
