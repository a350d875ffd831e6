"""Restrict the files that the package datasets may read to those of the data set itself.

A README.md may say where a set's files are (`configs: data_files`), and a saved set's state.json
names them; both come with the set. The package reads whatever they say, anywhere on the machine.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from limner.data.images import EXTENSIONS
from limner.data.regular_files import MAX_SIDECAR_BYTES, why_not_regular
from limner.errors import LimnerError
from limner.messages import shorten_name

_CURE = "If you want it, copy the file into the data set."


def check_data_files(
    files: Mapping[str, Sequence[str]] | None, name: str, roots: Sequence[str]
) -> None:
    """Raises LimnerError for a file that lies elsewhere.

    Args:
        files: of each split, as the package found them: paths or URLs.
        name: of the set, for people.
        roots: what their real paths may begin with: see `folder_root`.
    """
    for file in (file for listed in (files or {}).values() for file in listed):
        # Of an archive that is read as it is: "zip://*::/path/of/it.zip".
        file = str(file).rpartition("::")[2]
        if "://" in file:
            place = file
        elif os.path.splitext(file)[1].lower() in EXTENSIONS:  # links are looked at row by row
            place = os.path.join(os.path.realpath(os.path.dirname(file)), os.path.basename(file))
        else:
            place = os.path.realpath(file)
        if not any(place.startswith(root) for root in roots):
            raise LimnerError(
                f"{name}: its README.md refers to {shorten_name(file)}, which is not a file of the "
                f"data set and is not read. {_CURE}"
            )


def folder_root(folder: Path) -> str:
    """The beginning of the real path of every file in a folder."""
    return os.path.join(os.path.realpath(folder), "")


def check_saved(path: Path) -> None:
    """Raises LimnerError where what `save_to_disk` wrote names splits or files elsewhere."""
    splits = _listed(path / "dataset_dict.json", "splits")
    for name in splits:
        _check_name(path, name)
    for folder in [path, *(path / str(name) for name in splits)]:
        for file in _listed(folder / "state.json", "_data_files"):
            name = file.get("filename") if isinstance(file, dict) else file
            _check_name(folder, name)
            _check_regular(folder / str(name), sys.maxsize)
        _check_regular(folder / "dataset_info.json")


def check_described(folder: Path) -> None:
    """Raises LimnerError where what tells the package of a folder's files is no file to be read."""
    for name in ("README.md", ".huggingface.yaml", "dataset_infos.json"):
        _check_regular(folder / name)


def _check_regular(file: Path, most: int = MAX_SIDECAR_BYTES) -> None:
    """Raises LimnerError for a device or a pipe, which may never end, or one of absurd size."""
    try:
        reason = why_not_regular(file, most)
    except (OSError, ValueError):
        return  # it is not there, or the package says what is wrong with it
    if reason:
        raise LimnerError(f"{file} is not read: {reason}. Download the data set again.")


def _check_name(folder: Path, name: object) -> None:
    plain = isinstance(name, str) and name and not set(name) & set("/\\:\0") and name != ".."
    if not plain:
        raise LimnerError(
            f"{folder} refers to {shorten_name(str(name))}, which is outside the folder and is not "
            f"read. {_CURE}"
        )


def _listed(file: Path, key: str) -> list[object]:
    _check_regular(file)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []  # the package says what is wrong with it
    listed = found.get(key) if isinstance(found, dict) else None
    return listed if isinstance(listed, list) else []
