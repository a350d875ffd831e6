"""Pictures inside an Arrow table, as the package `datasets` keeps them.

Tables are memory-mapped, so that a data set of any size takes no more memory than its captions do.
Pictures are left encoded, and decoded here as all others are.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from limner.data import pictures
from limner.data.formats.classes import readable
from limner.data.formats.columns import HELD_OUT, IMAGE, Chosen, Columns
from limner.data.formats.entries import check_caption, require_rows
from limner.data.rows import Refused, Row
from limner.errors import LimnerError
from limner.fingerprints import DIGEST, Fingerprints, digest, load_array, save_array

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

_AT_ONCE = 1000  # rows
_CACHED = re.compile(r".*/(?:snapshots|extracted)/[0-9a-f]{16,}/(.+)")
"""Where a file lies that was downloaded: what follows is the same on every machine."""


class DatasetPictures:
    """Rows of an Arrow table; a PictureSet, and Contained.

    A row's key is the path that the picture has in the data set, where all rows have one of their
    own, else the row's number.

    Args:
        data: one split; its pictures may be an `Image` column, bytes, or paths.
        name: for people.
        folder: what relative paths are relative to.
    """

    def __init__(
        self,
        data: Dataset,
        name: str,
        columns: Columns | None = None,
        folder: Path | None = None,
        crop: pictures.Crop = "center",
    ) -> None:
        import datasets

        self.name, self.crop, self.folder = name, crop, folder
        chosen = _choose(data, columns or Columns(), name)
        self.identity = _identity(data)
        self.image = chosen.image
        data = _encoded(data, chosen.image, name)
        keys, self.rows, self.refused = self._read(data, chosen)
        require_rows(self.rows, self.refused, name)
        self.places = keys and {key: place for place, key in enumerate(keys)}
        self.table = data.select_columns([chosen.image]).with_format("arrow")
        captions = sum(len(row.captions) for row in self.rows)
        by = "the picture's path" if keys else "the row's number"
        given = HELD_OUT in data.column_names
        rule = f"the column {HELD_OUT} where it says so, else by " if given else ""
        self.description = (
            f"{len(self.rows):,} pictures with {captions:,} captions from {name} (read by datasets "
            f"{datasets.__version__}, {chosen}); {len(self.refused):,} rows refused. Held out by "
            f"{rule}a hash of {by} and data.train_split."
        )

    def load(self, row: Row, image_size: pictures.Size) -> np.ndarray:
        """The row's picture in a size, uint8 [height, width, 3]. Raises PictureError."""
        return pictures.decode(self.picture(row), image_size, self.crop, row.key)

    def picture(self, row: Row) -> bytes | Path:
        """As the table holds it: encoded, or the path of its file. Raises PictureError."""
        held, file = self._picture(self._place(row.key))
        return file if held is None else held.as_py()

    def path(self, row: Row) -> Path | None:
        """The file, where the table holds only its path."""
        held, file = self._picture(self._place(row.key))
        return file if held is None else None

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
            held, file = self._picture(place)
            if held is None:
                files[place] = file
            else:
                found[place] = np.frombuffer(digest(held.as_py()), dtype=np.uint8)
        if len(missing) > len(files):
            save_array(kept, found)
        if files:  # these may change while the table stays the same: `known` looks at them
            found[list(files)] = known.of_files(list(files.values()))
        return found[places]

    def _place(self, key: str) -> int:
        return self.places[key] if self.places else int(key)

    def _picture(self, place: int) -> tuple[pyarrow.Scalar | None, Path]:
        """(the encoded picture, not copied yet, or None; its file, if it is one)."""
        picture = self.table[place : place + 1].column(self.image)[0]
        held = picture["bytes"]
        return held if held.is_valid else None, self._file(picture["path"].as_py() or "")

    def _file(self, path: str) -> Path:
        return Path(path) if self.folder is None else self.folder / path

    def _read(
        self, data: Dataset, chosen: Chosen
    ) -> tuple[list[str] | None, list[Row], list[Refused]]:
        """(the key of every place, if they are paths; rows; refused)."""
        names = data.column_names
        words = data.select_columns(
            list(dict.fromkeys([*chosen.captions, *([HELD_OUT] if HELD_OUT in names else [])]))
        )
        labels = {
            name: feature.names
            for name, feature in data.features.items()
            if name in chosen.captions and hasattr(feature, "names")  # a ClassLabel
        }
        paths, lacks = list[str](), set[int]()
        for place, (path, has_bytes) in enumerate(_places(data, chosen.image)):
            paths.append(self._key(path) if path else "")
            if not has_bytes and (not path or "://" in path):
                lacks.add(place)
        keys = paths if all(paths) and len(set(paths)) == len(paths) else None
        rows, refused = list[Row](), list[Refused]()
        place = -1
        for batch in words.with_format("arrow").iter(_AT_ONCE):
            for values in batch.to_pylist():
                place += 1
                key = keys[place] if keys else str(place)
                if place in lacks:
                    reason = (
                        f"only a web address, {paths[place][:60]}, stands in place of the picture: "
                        "download the pictures"
                        if paths[place]
                        else "there is no picture"
                    )
                    refused.append(Refused(key, f"row {place}: {reason}"))
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
            f"{name}: the column '{image}' is {data.features[image]}, not pictures ({error}); "
            f"name another in data.image_column: {', '.join(data.column_names)}"
        ) from None


def _places(data: Dataset, image: str) -> Iterator[tuple[str | None, bool]]:
    """(path, whether the picture is there as bytes) of each row, without reading the bytes."""
    import pyarrow.compute

    for batch in data.select_columns([image]).with_format("arrow").iter(_AT_ONCE):
        for chunk in batch.column(image).chunks:
            paths = pyarrow.compute.struct_field(chunk, "path").to_pylist()
            there = pyarrow.compute.struct_field(chunk, "bytes").is_valid().to_pylist()
            yield from zip(paths, there, strict=True)


def _good(text: Any) -> tuple[tuple[str, ...], list[str]]:
    """(captions that can be used, reasons why others cannot)."""
    texts = text if isinstance(text, list) else [text]
    captions, reasons = dict[str, None](), list[str]()
    for caption in texts:
        if reason := check_caption(caption):
            reasons.append(reason)
        elif caption.strip() in captions:
            reasons.append("the same text stands there twice")
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
