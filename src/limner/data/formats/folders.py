"""Pictures that are files of their own in a folder, whichever format says what they are called."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from limner.data import pictures
from limner.data.formats.classes import read_classes
from limner.data.formats.coco import read_coco
from limner.data.formats.columns import HELD_OUT, Columns
from limner.data.formats.cub import read_cub
from limner.data.formats.entries import (
    BY_HASH,
    MOST_CHARACTERS,
    Entry,
    Found,
    collect,
    require_rows,
)
from limner.data.formats.looking import METADATA, recognise, table_in, unknown
from limner.data.formats.reading import existing_folder, parse_json, read_text
from limner.data.formats.tables import read_table_file
from limner.data.rows import Refused, Row
from limner.errors import LimnerError
from limner.fingerprints import Fingerprints

__all__ = ["MOST_CHARACTERS", "READERS", "Entry", "FolderPictures", "collect", "read_folder"]


class FolderPictures:
    """Picture files, in any of the formats of READERS; a PictureSet.

    A row is one picture file: its key is the path within the folder, with forward slashes, and
    all its captions, from however many rows, columns, or lists, are merged into it. Captions lose
    white space at both ends and are otherwise kept. No picture is opened until `load`.

    Raises LimnerError where there is no folder, no known layout, metadata that cannot be read, or
    no usable row. Single bad rows are not errors: they are listed in `refused`.

    Args:
        path: a folder, or a file that names pictures.
        kind: one of READERS, or "auto" to look.
    """

    def __init__(
        self,
        path: str | Path,
        crop: pictures.Crop = "center",
        columns: Columns | None = None,
        kind: str = "auto",
    ) -> None:
        self.name = str(path)
        self.crop = crop
        columns = columns or Columns()
        place = Path(path).expanduser()
        if kind == "auto":
            kind = recognise(place, columns)
        if kind not in READERS:
            raise LimnerError(f"{path}: data.format {kind} is not one of {', '.join(READERS)}")
        found = READERS[kind](place, columns)
        self.folder = found.folder
        self.rows, self.refused = found.rows, found.refused
        captions = sum(len(row.captions) for row in self.rows)
        self.description = (
            f"{len(self.rows):,} pictures with {captions:,} captions from {self.name} "
            f"({found.layout}); {len(self.refused):,} rows refused. {found.held_out}"
        )

    def load(self, row: Row, image_size: int) -> np.ndarray:
        """The row's picture, uint8 [image_size, image_size, 3]. Raises PictureError."""
        return pictures.decode(self.folder / row.key, image_size, self.crop, name=row.key)

    def path(self, row: Row) -> Path:
        return self.folder / row.key

    def contents(self, rows: Sequence[Row], known: Fingerprints) -> np.ndarray:
        """The hash of each row's picture file, uint8 [N, 16]."""
        return known.of_files([self.folder / row.key for row in rows])


def read_folder(path: Path, columns: Columns | None = None) -> Found:
    """A folder with metadata.json, .jsonl, .csv or .parquet, or with a .txt beside each picture.

    Raises LimnerError if it has neither.
    """
    folder = existing_folder(path)
    for name in METADATA:
        if (folder / name).is_file():
            return read_table_file(folder / name, columns or Columns())
    entries, refused = _captions_beside(folder)
    if not entries:
        raise unknown(folder)
    rows, more_refused = collect(entries, folder)
    require_rows(rows, refused + more_refused, folder)
    given = any(entry.held_out is not None for entry in entries)
    rule = f"Held out as {HELD_OUT} in the .json beside a picture says; else by hash."
    return Found(
        "a .txt beside each picture",
        folder,
        rows,
        refused + more_refused,
        rule if given else BY_HASH,
    )


READERS: dict[str, Callable[[Path, Columns], Found]] = {
    "folder": read_folder,
    "table": lambda path, columns: read_table_file(_table(path, columns), columns),
    "coco": lambda path, _: read_coco(path),
    "cub": lambda path, _: read_cub(path),
    "classes": lambda path, _: read_classes(path),
}


def _table(path: Path, columns: Columns) -> Path:
    """The table itself, where its folder was given."""
    if path.is_file():
        return path
    found = table_in(existing_folder(path), columns)
    if found is None:
        raise LimnerError(
            f"{path} holds no table with a picture's and a caption's column. Give the file itself; "
            "data.image_column and data.caption_column say which columns are meant."
        )
    return found


def _captions_beside(folder: Path) -> tuple[list[Entry], list[Refused]]:
    """Pairs of picture and .txt of the same name; the whole .txt, stripped, is one caption.

    More of them stand as a list under "captions" in a .json beside it, if there is one.
    """
    entries: list[Entry] = []
    refused: list[Refused] = []
    for directory, within, names in _directories(folder):
        texts = {name[:-4]: name for name in names if name.lower().endswith(".txt")}
        more = {name[:-5]: name for name in names if name.lower().endswith(".json")}
        beside: dict[str, list[str]] = {stem: [] for stem in texts}
        for name in names:
            stem, extension = os.path.splitext(name)
            if extension.lower() in pictures.EXTENSIONS:
                if stem in texts:
                    beside[stem].append(name)
                else:
                    key = posixpath.join(within, name)
                    refused.append(Refused(key, "there is no .txt of the same name beside it"))
        for stem, text in texts.items():
            if not beside[stem]:
                reason = "there is no picture of the same name beside it of a known extension"
                refused.append(Refused(posixpath.join(within, text), reason))
                continue
            caption: Any
            try:
                caption, held_out = read_text(directory / text), None
                if stem in more:
                    caption, held_out = _more_captions(directory / more[stem], caption)
            except LimnerError as error:
                refused += [Refused(posixpath.join(within, n), str(error)) for n in beside[stem]]
                continue
            for name in beside[stem]:
                key = posixpath.join(within, name)
                entries.append(Entry(text, key, caption, None, held_out))
    return entries, refused


def _directories(folder: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """Every directory in a stable order: itself, its path within the folder, its files."""
    for directory, subfolders, names in os.walk(folder):
        # Names with a leading dot belong to the system (macOS puts ._apple.jpg beside apple.jpg).
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        within = Path(directory).relative_to(folder).as_posix().removeprefix(".")
        yield Path(directory), within, sorted(name for name in names if not name.startswith("."))


def _more_captions(path: Path, first: str) -> tuple[Any, bool | None]:
    """(captions, whether held out) of a picture whose .txt says `first`, from the .json beside
    it. Programs keep other things in such files, which are let be."""
    data = parse_json(read_text(path), path)
    if not isinstance(data, dict):
        return first, None
    captions, held_out = data.get("captions"), data.get(HELD_OUT)
    if isinstance(captions, list):
        captions = [first, *(text for text in captions if text != first.strip())]
    return captions or first, held_out if isinstance(held_out, bool) else None
