"""Pictures stored inside Arrow tables, as the package `datasets` does it.

Tables are memory-mapped, so that a data set of any size takes no more memory than its captions do.
Pictures are left encoded, and decoded here as all others are.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from limner.data import images as images
from limner.data.dataset import HELD_OUT, ImageError, Refused, Row, require_rows
from limner.data.formats.classes import readable
from limner.data.formats.columns import IMAGE, Chosen, Columns, has_text
from limner.data.formats.entries import check_caption
from limner.data.formats.parquet_rows import DamagedRows, rows_of, said
from limner.data.image_paths import ImagePaths
from limner.errors import LimnerError
from limner.files.fingerprints import DIGEST, Fingerprints, digest, load_array, save_array
from limner.messages import plural, shorten_name

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

_AT_ONCE = 1000  # rows
NO_FOLDER = (
    "there is only a path instead of the picture, and a table without its own folder may not refer "
    "to files"
)
_CACHED = re.compile(r".*/(?:snapshots|extracted)/[0-9a-f]{16,}/(.+)")
"""Where a file lies that was downloaded: what follows is the same on every machine."""


class DatasetImages:
    """Rows of an Arrow table; an ImageDataset, and PackedImages.

    A row's key is the path that the picture has in the data set, where all rows have one of their
    own, else the row's number.

    Tables come from others. So their offsets are verified before anything is read through them
    (those that lie would end the process), and a path in one leads to a picture only if the file
    itself lies where the set's files are.

    Args:
        data: one split; its pictures may be an `Image` column, bytes, or paths.
        name: for people.
        folder: what relative paths are relative to, and where files may lie; None: only pictures
            within the table are read.
        allowed: folders outside of it, where files may lie as well.
    """

    def __init__(
        self,
        data: Dataset,
        name: str,
        columns: Columns | None = None,
        folder: Path | None = None,
        crop: images.Crop = "center",
        allowed: Sequence[Path] = (),
    ) -> None:
        import datasets

        self.name, self.crop, self.folder = name, crop, folder
        self.paths = None if folder is None else ImagePaths(folder, allowed, links=False)
        chosen = _choose(data, columns or Columns(), name)
        used = [chosen.image, *chosen.captions, *chosen.others, HELD_OUT]
        damaged = _damaged(data, [n for n in used if n in data.column_names], name)
        self.identity = _identity(data)
        self.image_column = chosen.image
        data = _encoded(data, chosen.image, name)
        self.whole = _ranges(len(data), damaged)  # rows that may be read: (first, after the last)
        keys, self.rows, self.refused = self._read(data, chosen, damaged)
        require_rows(self.rows, self.refused, name)
        self.places = keys and {key: place for place, key in enumerate(keys)}
        self.table = data.select_columns([chosen.image]).with_format("arrow")
        captions = sum(len(row.captions) for row in self.rows)
        by = "the picture's path" if keys else "the row's number"
        given = HELD_OUT in data.column_names
        rule = f"the column {HELD_OUT} where it says so, else by " if given else ""
        self.description = (
            f"{(n := len(self.rows)):,} {plural(n, 'picture')} with {captions:,} "
            f"{plural(captions, 'caption')} from {name} (read by datasets {datasets.__version__}, "
            f"{chosen}); {(n := len(self.refused)):,} {plural(n, 'row')} refused. Held out by "
            f"{rule}a hash of {by} and data.train_split."
        )
        self.description = " ".join((self.description, *self.notes))

    def load(self, row: Row, image_size: images.Size) -> np.ndarray:
        """The row's picture in a size, uint8 [height, width, 3]. Raises ImageError."""
        return images.decode(self.image(row), image_size, self.crop, row.key)

    def image(self, row: Row) -> bytes | Path:
        """As the table holds it: encoded, or the path of its file. Raises ImageError."""
        found = self._image(self._place(row.key))
        return found if isinstance(found, Path) else found.as_py()

    def path(self, row: Row) -> Path | None:
        """The file, where the table holds only its path."""
        found = self._image(self._place(row.key))
        return found if isinstance(found, Path) else None

    def signature(self, row: Row) -> bytes:
        """What stands for the row's picture as long as the table is the same one."""
        return digest(self.identity, row.key)

    def contents(self, rows: Sequence[Row], known: Fingerprints) -> np.ndarray:
        """The hash of each row's encoded picture, uint8 [N, 16].

        Those of pictures in the table are kept beside `known`, in one file for each table.
        """
        kept = known.path.with_name(f"contents-{self.identity.hex()}.npy")
        found = _read_kept(kept, len(self.table))
        places = np.array([self._place(row.key) for row in rows], dtype=np.int64)
        files: dict[int, Path] = {}
        missing = np.unique(places[~found[places].any(axis=1)]).tolist()
        for place in missing:
            image = self._image(place)
            if isinstance(image, Path):
                files[place] = image
            else:
                found[place] = np.frombuffer(digest(image.as_py()), dtype=np.uint8)
        if len(missing) > len(files):
            with contextlib.suppress(OSError):  # it is then read again the next time
                save_array(kept, found)
        if files:  # these may change while the table stays the same: `known` looks at them
            found[list(files)] = known.of_files(list(files.values()))
        return found[places]

    def _place(self, key: str) -> int:
        return self.places[key] if self.places else int(key)

    def _image(self, place: int) -> pyarrow.Scalar | Path:
        """The encoded picture, not copied yet, or its file."""
        image = self.table[place : place + 1].column(self.image_column)[0]
        held = image["bytes"]
        return held if held.is_valid else self._file(image["path"].as_py() or "")

    def _file(self, path: str) -> Path:
        """Raises ImageError for one that leads out of the folder."""
        if self.paths is None:
            raise ImageError(f"{shorten_name(path)}: {NO_FOLDER}")
        key, reason = self.paths.key(path)
        if reason:
            raise ImageError(f"{shorten_name(path)}: {reason}")
        return self.paths.root / key

    def _not_a_file(self, path: str) -> str | None:
        """Why a path leads to no picture that may be read."""
        if self.paths is None:
            return NO_FOLDER
        key, reason = self.paths.key(path)
        return reason or self.paths.existing(key)[1]

    def _read(
        self, data: Dataset, chosen: Chosen, damaged: Sequence[DamagedRows]
    ) -> tuple[list[str] | None, list[Row], list[Refused]]:
        """(the key of every place, if they are paths; rows; refused)."""
        names = [*chosen.captions, *chosen.others, HELD_OUT]
        words = data.select_columns([n for n in dict.fromkeys(names) if n in data.column_names])
        good = self.whole
        chosen, note = chosen.filled(lambda name: _has_text(words, name, good))
        self.notes = (note,) if note else ()
        labels = {
            name: feature.names
            for name, feature in data.features.items()
            if name in chosen.captions and hasattr(feature, "names")  # a ClassLabel
        }
        paths, lacks = [""] * len(data), dict[int, str]()
        for place, path, has_bytes in _places(data, chosen.image, good):
            paths[place] = self._key(path) if path else ""
            if not has_bytes and (reason := self._lack(path)):
                lacks[place] = reason
        whole = [paths[place] for first, last in good for place in range(first, last)]
        keys = paths if all(whole) and len(set(whole)) == len(whole) else None
        rows, refused = list[Row](), list[Refused]()
        for rows_lost in damaged:
            refused.append(Refused(f"rows {rows_lost.first} to {rows_lost.last}", str(rows_lost)))
        for place, values in _values(words, good):
            key = keys[place] if keys else str(place)
            if place in lacks:
                refused.append(Refused(key, f"row {place}: {lacks[place]}"))
                continue
            for name, known in labels.items():
                if isinstance(values[name], int) and 0 <= values[name] < len(known):
                    values[name] = readable(known[values[name]])
            entry = chosen.entry(f"row {place}", {chosen.image: None} | values)
            captions, reasons = _good(entry.text)
            if entry.fault:
                captions, reasons = (), [entry.fault]
            refused += [Refused(key, f"row {place}: {reason}") for reason in reasons]
            if captions:
                rows.append(Row(key, captions, entry.held_out))
        return keys, rows, refused

    def _lack(self, path: str | None) -> str | None:
        """Why there is no picture for a row that has only a path."""
        if not path:
            return "there is no picture"
        if "://" in path:
            return (
                f"there is only a URL, {shorten_name(path, 60)}, instead of the picture; download "
                "the pictures"
            )
        return self._not_a_file(path)

    def _key(self, path: str) -> str:
        """A picture's path as it is on every machine."""
        path = path.replace("\\", "/")
        if found := _CACHED.fullmatch(path):
            return found[1]
        if self.folder is not None and os.path.isabs(path):
            folder = self.folder.as_posix().rstrip("/") + "/"
            return path.removeprefix(folder)
        return posixpath.normpath(path) if "://" not in path else path


def _choose(data: Dataset, columns: Columns, name: str) -> Chosen:
    """The columns; that of the pictures is known by its type, if it is an `Image`."""
    import datasets

    if columns.image is None:
        images = [n for n, kind in data.features.items() if isinstance(kind, datasets.Image)]
        if images:
            known = [n for word in IMAGE for n in images if n.lower() == word]
            columns = Columns((known or images)[0], columns.captions)
    chosen = columns.choose(data.column_names)
    chosen.require(data.column_names, name)
    return chosen


def _encoded(data: Dataset, image: str, name: str) -> Dataset:
    """The data with pictures as {"bytes", "path"}."""
    import datasets

    try:
        return data.cast_column(image, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:  # Arrow's are these
        raise LimnerError(
            f"{name}: the column '{image}' is {data.features[image]}, not pictures ({error}); set "
            f"data.image_column to another: {', '.join(data.column_names)}"
        ) from None


def _damaged(data: Dataset, names: Sequence[str], name: str) -> list[DamagedRows]:
    """Rows of columns whose offsets are not what Arrow wants, which would end the process.

    Raises LimnerError where they cannot be told apart: only some rows of the table are used.
    """
    import pyarrow

    found: dict[tuple[int, int], str] = {}
    for column in names:
        first = 0
        for chunk in data.data.table.column(column).chunks:
            try:
                chunk.validate(full=True)
            except pyarrow.ArrowInvalid as error:
                found[first, first + len(chunk) - 1] = said(error)
            first += len(chunk)
    if found and data._indices is not None:
        raise LimnerError(
            f"{name}: the table is damaged ({next(iter(found.values()))}). Download or write it "
            "again, or set data.dataset_split=train to use the intact rows"
        )
    return [DamagedRows(*rows, reason) for rows, reason in sorted(found.items())]


def _ranges(count: int, damaged: Sequence[DamagedRows]) -> list[tuple[int, int]]:
    """The rows between those that are damaged: (first, after the last)."""
    ranges, first = list[tuple[int, int]](), 0
    for rows in damaged:
        ranges.append((first, rows.first))
        first = max(first, rows.last + 1)
    return [(a, b) for a, b in [*ranges, (first, count)] if a < b]


def _tables(data: Dataset, good: Sequence[tuple[int, int]]) -> Iterator[tuple[int, pyarrow.Table]]:
    """(the first row, so many rows) of the ranges, some at a time."""
    arrow = data.with_format("arrow")
    for first, last in good:
        for begin in range(first, last, _AT_ONCE):
            yield begin, arrow[begin : min(last, begin + _AT_ONCE)]


def _values(data: Dataset, good: Sequence[tuple[int, int]]) -> Iterator[tuple[int, dict[str, Any]]]:
    for first, table in _tables(data, good):
        for batch in table.combine_chunks().to_batches():
            yield from enumerate(rows_of(batch), start=first)


def _has_text(data: Dataset, name: str, good: Sequence[tuple[int, int]]) -> bool:
    return any(has_text(row[name]) for _, row in _values(data.select_columns([name]), good))


def _places(
    data: Dataset, image: str, good: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, str | None, bool]]:
    """(row, path, whether the picture is there as bytes), without reading the bytes."""
    import pyarrow.compute

    for first, table in _tables(data.select_columns([image]), good):
        place = first
        for chunk in table.column(image).chunks:
            paths = pyarrow.compute.struct_field(chunk, "path").to_pylist()
            there = pyarrow.compute.struct_field(chunk, "bytes").is_valid().to_pylist()
            for path, has_bytes in zip(paths, there, strict=True):
                yield place, path, has_bytes
                place += 1


def _good(text: Any) -> tuple[tuple[str, ...], list[str]]:
    """(captions that can be used, reasons why others cannot)."""
    texts = text if isinstance(text, list) else [text]
    captions, reasons = dict[str, None](), list[str]()
    for caption in texts:
        if reason := check_caption(caption):
            reasons.append(reason)
        elif caption.strip() in captions:
            reasons.append("the same text appears twice")
        else:
            captions[caption.strip()] = None
    return tuple(captions), reasons if texts else ["the list of captions is empty"]


def _identity(data: Dataset) -> bytes:
    """A hash that is another one if the table is."""
    parts = [str(data._fingerprint), str(len(data))]
    for file in data.cache_files:
        found = os.stat(file["filename"])
        parts.append(f"{file['filename']} {found.st_size} {found.st_mtime_ns}")
    return digest(*parts)


def _read_kept(path: Path, count: int) -> np.ndarray:
    """uint8 [count, 16]; zeros where nothing is known."""
    kept = load_array(path)
    if kept is not None and kept.dtype == np.uint8 and kept.shape == (count, DIGEST):
        return kept
    return np.zeros((count, DIGEST), dtype=np.uint8)
