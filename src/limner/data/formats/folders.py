"""Data sets whose pictures are individual files in a folder, in any metadata format."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from limner.data import images
from limner.data.dataset import HELD_OUT, Refused, Row, require_rows
from limner.data.folder_walk import CAPTION_ENDINGS, FolderWalk, by_stem, caption_files, composed
from limner.data.formats.classes import read_classes
from limner.data.formats.coco import read_coco
from limner.data.formats.cub import read_cub
from limner.data.formats.detect import METADATA, recognise, table_in, tables_not_read, unknown
from limner.data.formats.encodings import Guesses, decode, decode_together
from limner.data.formats.entries import BY_HASH, MOST_CHARACTERS, Entry, Found, collect
from limner.data.formats.options import ReadOptions
from limner.data.formats.tables import read_table_file
from limner.data.formats.text_files import existing_folder, parse_json, read_bytes
from limner.data.regular_files import MAX_CAPTION_BYTES, MAX_SIDECAR_BYTES
from limner.errors import LimnerError
from limner.files.fingerprints import Fingerprints
from limner.messages import plural

__all__ = ["MOST_CHARACTERS", "READERS", "Entry", "FolderImages", "collect", "read_folder"]


class FolderImages:
    """Picture files, in any of the formats of READERS; an ImageDataset.

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
        crop: images.Crop = "center",
        options: ReadOptions | None = None,
        kind: str = "auto",
    ) -> None:
        self.name = str(path)
        self.crop = crop
        options = options or ReadOptions()
        place = Path(path).expanduser()
        if kind == "auto":
            kind = recognise(place, options.columns, options.encoding)
        if kind not in READERS:
            raise LimnerError(f"{path}: data.format {kind} is not one of {', '.join(READERS)}")
        found = READERS[kind](place, options)
        self.folder = found.folder
        self.rows, self.refused = found.rows, found.refused
        self.notes, self.passed_over = found.notes, found.passed_over
        if kind in ("folder", "classes") and (unread := tables_not_read(found.folder)):
            self.notes = (*found.notes, unread)
        captions = sum(len(row.captions) for row in self.rows)
        self.description = (
            f"{(n := len(self.rows)):,} {plural(n, 'picture')} with {captions:,} "
            f"{plural(captions, 'caption')} from {self.name} "
            f"({found.layout}); {len(self.refused):,} {plural(len(self.refused), 'row')} refused. "
            + " ".join(
                part for part in (found.held_out, *self.notes, str(found.passed_over)) if part
            )
        )

    def load(self, row: Row, image_size: images.Size) -> np.ndarray:
        """The row's picture in a size, uint8 [height, width, 3]. Raises ImageError."""
        return images.decode(self.folder / row.key, image_size, self.crop, name=row.key)

    def path(self, row: Row) -> Path:
        return self.folder / row.key

    def image(self, row: Row) -> Path:
        """The file itself."""
        return self.folder / row.key

    def contents(self, rows: Sequence[Row], known: Fingerprints) -> np.ndarray:
        """The hash of each row's picture file, uint8 [N, 16]."""
        return known.of_files([self.folder / row.key for row in rows])


def read_folder(path: Path, options: ReadOptions | None = None) -> Found:
    """A folder with metadata.json, .jsonl, .csv or .parquet, or with a .txt beside each picture.

    Raises LimnerError if it has neither.
    """
    folder, options = existing_folder(path), options or ReadOptions()
    for name in METADATA:
        if (folder / name).is_file():
            return read_table_file(folder / name, options)
    walk, guesses = FolderWalk(folder), Guesses()
    entries, refused, unread = _captions_beside(walk, options.encoding, guesses)
    if not entries:
        raise unknown(folder)
    rows, more_refused = collect(entries, folder, options.allowed)
    require_rows(rows, refused + more_refused, folder)
    given = any(entry.held_out is not None for entry in entries)
    rule = f"Held out as {HELD_OUT} in the .json beside a picture says; else by hash."
    notes = [str(guesses)] if str(guesses) else []
    if unread:
        files = plural(unread, "file")
        notes.append(f"Not read: {unread:,} .caption {files}, as a .txt of the same name is there.")
    return Found(
        "a .txt beside each picture",
        folder,
        rows,
        refused + more_refused,
        rule if given else BY_HASH,
        tuple(notes),
        walk.passed_over,
    )


READERS: dict[str, Callable[[Path, ReadOptions], Found]] = {
    "folder": read_folder,
    "table": lambda path, options: read_table_file(_table(path, options), options),
    "coco": read_coco,
    "cub": read_cub,
    "classes": read_classes,
}


def _table(path: Path, options: ReadOptions) -> Path:
    """The table itself, where its folder was given."""
    if path.is_file():
        return path
    found = table_in(existing_folder(path), options.columns, options.encoding)
    if found is None:
        raise LimnerError(
            f"{path} contains no table with a picture and a caption column. Use the file itself, "
            "and set data.image_column and data.caption_column to its columns."
        )
    return found


class _Pair(NamedTuple):
    """A picture and the .txt or .caption of its name."""

    text: str
    key: str
    caption: str
    more: Path | None
    """A .json of the same name."""


def _captions_beside(
    walk: FolderWalk, encoding: str | None, guesses: Guesses
) -> tuple[list[Entry], list[Refused], int]:
    """Pairs of picture and .txt or .caption of the same name, which, stripped, is one caption; and
    how many .caption files have a .txt beside them, which is read instead.

    More captions stand as a list under "captions" in a .json beside it, if there is one.
    """
    unread = 0
    pairs: list[_Pair] = []
    refused: list[Refused] = []
    for directory, within, names in walk:
        texts, sidecars = caption_files(names), by_stem(names, ".json")
        for name in names:
            stem, ending = os.path.splitext(name)
            if ending.lower() not in CAPTION_ENDINGS or name == (last := texts[composed(stem)]):
                continue
            if not last.lower().endswith(ending.lower()):
                unread += 1
                continue
            reason = f"{last} next to it has the same name and is read instead"
            refused.append(Refused(posixpath.join(within, name), reason))
        beside: dict[str, list[str]] = {stem: [] for stem in texts}
        for name in names:
            stem, extension = os.path.splitext(name)
            if extension.lower() in images.EXTENSIONS:
                if composed(stem) in texts:
                    beside[composed(stem)].append(name)
                else:
                    key = posixpath.join(within, name)
                    refused.append(Refused(key, "there is no .txt of the same name next to it"))
        for stem, text in texts.items():
            if not beside[stem]:
                reason = "there is no picture of the same name and a known extension next to it"
                refused.append(Refused(posixpath.join(within, text), reason))
                continue
            keys = [posixpath.join(within, name) for name in beside[stem]]
            try:
                caption = decode(read_bytes(directory / text, MAX_CAPTION_BYTES), encoding)
            except LimnerError as error:
                refused += [Refused(key, str(error)) for key in keys]
                continue
            sidecar = directory / sidecars[stem] if stem in sidecars else None
            pairs += [_Pair(text, key, caption, sidecar) for key in keys]
    found: list[tuple[_Pair, list[Any], bool | None]] = []
    for pair in pairs:
        try:
            more, held_out = _more_captions(pair.more, encoding) if pair.more else ([], None)
            found.append((pair, more, held_out))
        except LimnerError as error:
            refused.append(Refused(pair.key, str(error)))
    # Of all together it can be told in which encoding they are.
    cells = [cell for pair, more, _ in found for cell in (pair.caption, *more)]
    strings = [cell for cell in cells if isinstance(cell, str)]
    read = iter(decode_together(strings, encoding, guesses))
    entries = []
    for pair, more, held_out in found:
        caption = next(read)
        others = [next(read) if isinstance(text, str) else text for text in more]
        captions = [caption, *(text for text in others if text != caption.strip())]
        entries.append(Entry(pair.text, pair.key, captions, None, held_out))
    return entries, refused, unread


def _more_captions(path: Path, encoding: str | None) -> tuple[list[Any], bool | None]:
    """(the list of captions, whether held out) of a .json beside a picture and its .txt. Programs
    keep other things in such files, by the name of captions, too; what is no list is let be."""
    text = decode(read_bytes(path, MAX_SIDECAR_BYTES), encoding)
    if encoding is not None:  # before it is parsed: half a character may look like a backslash
        (text,) = decode_together([text], encoding)
    data = parse_json(text, path)
    if not isinstance(data, dict):
        return [], None
    captions, held_out = data.get("captions"), data.get(HELD_OUT)
    return (
        captions if isinstance(captions, list) else [],
        held_out if isinstance(held_out, bool) else None,
    )
