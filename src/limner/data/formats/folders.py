"""Your own folder of pictures and captions: how it is laid out is found by looking."""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from limner.data import pictures
from limner.data.rows import Refused, Row
from limner.errors import LimnerError
from limner.fingerprints import Fingerprints

LAYOUTS = """\
  1. metadata.json: [{"image": "images/image_000001.jpg", "text": "a red apple"}, ...]
  2. metadata.jsonl, one {"file_name": "0001.jpg", "text": "a red apple"} a line, or metadata.csv
     with the columns file_name and text (Hugging Face imagefolder)
  3. apple.jpg with its caption in apple.txt beside it, in any subfolder"""

MOST_CHARACTERS = 10_000
"""Of a caption; a longer one is a mistake, and slow to read at every pass."""

_ALSO_CALLED = {
    "image": ("file_name", "filename", "image_path", "img", "path", "file", "picture"),
    "file_name": ("image", "filename", "image_path", "img", "path", "file", "picture"),
    "text": ("caption", "captions", "prompt", "description", "label", "texts"),
}
"""What people call these keys elsewhere: named in the error as the one to rename."""


class Entry(NamedTuple):
    """One pair as it was written, unchecked."""

    place: str
    """Where it stands, for people: "metadata.json, row 3"."""
    image: Any
    text: Any
    fault: str | None = None
    """What is wrong with the row as a whole."""


class FolderPictures:
    """A folder in one of the three LAYOUTS, looked for in that order; a PictureSet.

    A row is one picture file: its key is the path within the folder, with forward slashes, and
    all its captions, from however many rows or a list under "text", are merged into it. Captions
    lose white space at both ends and are otherwise kept. No picture is opened until `load`.

    Raises LimnerError where there is no folder, no known layout, metadata that cannot be read, or
    no usable row. Single bad rows are not errors: they are listed in `refused`.
    """

    def __init__(self, path: str | Path, crop: pictures.Crop = "center") -> None:
        self.name = str(path)
        self.folder = existing_folder(Path(path))
        self.crop = crop
        layout, self.rows, self.refused = read_folder(self.folder)
        require_rows(self.rows, self.refused, self.folder)
        captions = sum(len(row.captions) for row in self.rows)
        self.description = (
            f"{len(self.rows):,} pictures with {captions:,} captions from {self.name} ({layout}); "
            f"{len(self.refused):,} rows refused. Held out by a hash of the picture's path and "
            "data.train_split, so that adding pictures moves none."
        )

    def load(self, row: Row, image_size: int) -> np.ndarray:
        """The row's picture, uint8 [image_size, image_size, 3]. Raises PictureError."""
        return pictures.decode(self.folder / row.key, image_size, self.crop, name=row.key)

    def picture(self, row: Row) -> Path:
        """The file itself."""
        return self.folder / row.key

    def path(self, row: Row) -> Path:
        return self.folder / row.key

    def contents(self, rows: Sequence[Row], known: Fingerprints) -> np.ndarray:
        """The hash of each row's picture file, uint8 [N, 16]."""
        return known.of_files([self.folder / row.key for row in rows])


def read_folder(folder: Path) -> tuple[str, list[Row], list[Refused]]:
    """(layout, rows, refused) of an existing folder. Raises LimnerError if no layout is known."""
    if (folder / "metadata.json").is_file():
        return "metadata.json", *collect(_metadata_json(folder / "metadata.json"), folder)
    if (folder / "metadata.jsonl").is_file():
        return "metadata.jsonl", *collect(_metadata_jsonl(folder / "metadata.jsonl"), folder)
    if (folder / "metadata.csv").is_file():
        return "metadata.csv", *collect(_metadata_csv(folder / "metadata.csv"), folder)
    entries, refused = _captions_beside(folder)
    if not entries:
        raise LimnerError(
            f"{folder} has no layout that is known here{_hint(folder)}. One of these is needed:\n"
            f"{LAYOUTS}"
        )
    rows, more_refused = collect(entries, folder)
    return "a .txt beside each picture", rows, refused + more_refused


def collect(entries: Iterable[Entry], folder: Path) -> tuple[list[Row], list[Refused]]:
    """Checks each pair; rows in the order of first mention, a picture's captions merged."""
    captions: dict[str, list[str]] = {}
    refused = []
    listing = Listing(folder)
    for place, image, text, fault in entries:
        if fault:
            refused.append(Refused(place, f"{place}: {fault}"))
            continue
        key, reason = _check_path(image, listing)
        texts = text if isinstance(text, list) else [text]
        if not texts:
            reason = reason or 'the list under "text" is empty'
        if reason:
            refused.append(Refused(key, f"{place}: {reason}"))
            continue
        for caption in texts:
            reason = _check_caption(caption)
            caption = caption if reason else caption.strip()
            if not reason and caption in captions.get(key, ()):
                reason = "the same picture and text stand in an earlier row"
            if reason:
                refused.append(Refused(key, f"{place}: {reason}"))
            else:
                captions.setdefault(key, []).append(caption)
    return [Row(key, tuple(texts)) for key, texts in captions.items()], refused


class Listing:
    """What files are in a folder: each directory is read once, so that a million rows are cheap."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names: dict[str, frozenset[str] | None] = {}

    def missing(self, key: str) -> str | None:
        """Why there is no file at this relative path, or None if there is one."""
        directory, name = posixpath.split(key)
        if directory not in self.names:
            try:
                with os.scandir(self.root / directory) as found:
                    self.names[directory] = frozenset(item.name for item in found if item.is_file())
            except OSError:
                self.names[directory] = None
        names = self.names[directory]
        if names is None:
            return f"the folder {directory!r} is not there"
        return None if name in names else "the picture file is not there (capitals count)"


def _check_path(image: object, listing: Listing) -> tuple[str, str | None]:
    """(key, None), or what to call the row and why its path is refused."""
    if not isinstance(image, str) or not image.strip():
        return "(no path)", f"the path is {repr(image)[:40]}, not the name of a picture file"
    if not _is_unicode(image):
        return ascii(image), "the path is not valid Unicode (UTF-8)"
    if "://" in image:
        return image, "this is a web address: download the picture, and give its path"
    path = image.replace("\\", "/")
    key = posixpath.normpath(path)
    if path.startswith("/") or path[1:2] == ":" or key.split("/")[0] == ".." or "\0" in path:
        return image, "the path leads out of the folder: give one relative to it, without '..'"
    if posixpath.splitext(key)[1].lower() not in pictures.EXTENSIONS:
        return (
            key,
            f"not a picture by its extension (known: {' '.join(sorted(pictures.EXTENSIONS))})",
        )
    return key, listing.missing(key)


def _check_caption(caption: object) -> str | None:
    if not isinstance(caption, str):
        return f"the caption is {repr(caption)[:40]}, not text"
    if not caption.strip():
        return "the caption is empty"
    if len(caption) > MOST_CHARACTERS:
        return (
            f"the caption has {len(caption):,} characters, more than the {MOST_CHARACTERS:,} that "
            "any caption has: is it the right text?"
        )
    return _not_unicode(caption)


def _not_unicode(caption: str) -> str | None:
    for place, letter in enumerate(caption):
        if "\ud800" <= letter <= "\udfff":
            line = caption.count("\n", 0, place) + 1
            if letter < "\udc80" or letter > "\udcff":  # an escape of JSON's, not read_text's
                return "the caption is not valid Unicode (half of a surrogate pair)"
            byte = ord(letter) - 0xDC00
            return f"the caption's line {line}: byte 0x{byte:02x} is not UTF-8. Save it as UTF-8."
    return None


def _is_unicode(text: str) -> bool:
    """False for lone surrogates, which JSON escapes and file names of other encodings can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _metadata_json(path: Path) -> Iterator[Entry]:
    data = parse_json(read_text(path), path)
    if not isinstance(data, list):
        coco = isinstance(data, dict) and "annotations" in data
        fix = "This looks like COCO: run `limner prepare --type coco` on it. " if coco else ""
        raise LimnerError(
            f"{path} holds {_kind(data)}, not a list of rows. {fix}"
            'It must be [{"image": "images/image_000001.jpg", "text": "a red apple"}, ...].'
        )
    for number, row in enumerate(data, start=1):
        yield _entry(f"{path.name}, row {number}", row, "image")


def _metadata_jsonl(path: Path) -> Iterator[Entry]:
    # Not splitlines(): captions may hold other line separators, such as U+2028, as they are.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            place = f"{path.name}, line {number}"
            try:
                yield _entry(place, parse_json(line, path, first_line=number), "file_name")
            except LimnerError as error:
                yield Entry(place, None, None, str(error))


def _metadata_csv(path: Path) -> Iterator[Entry]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        missing = _missing_key(dict.fromkeys(reader.fieldnames or ()), "file_name")
        if missing:
            raise LimnerError(f"{path}, the first line: {missing}")
        for row in reader:
            place = f"{path.name}, line {reader.line_num}"
            if reader.restkey in row:
                fault = (
                    "there are more cells than columns. "
                    'A text that holds a comma needs quotes: "a red, ripe apple".'
                )
                yield Entry(place, None, None, fault)
            else:
                yield _entry(place, row, "file_name")
    except csv.Error as error:
        raise LimnerError(
            f"{path}, after line {reader.line_num}: this is not valid CSV: {error}. "
            "Look there for a quote that is opened and not closed."
        ) from error


def _captions_beside(folder: Path) -> tuple[list[Entry], list[Refused]]:
    """Pairs of picture and .txt of the same name; the whole .txt, stripped, is one caption."""
    entries: list[Entry] = []
    refused: list[Refused] = []
    for directory, subfolders, names in os.walk(folder):
        # Names with a leading dot belong to the system (macOS puts ._apple.jpg beside apple.jpg).
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        names = sorted(name for name in names if not name.startswith("."))
        texts = {name[:-4]: name for name in names if name.lower().endswith(".txt")}
        within = Path(directory).relative_to(folder).as_posix().removeprefix(".")
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
            try:
                caption = read_text(Path(directory, text)) if beside[stem] else ""
            except LimnerError as error:
                refused += [Refused(posixpath.join(within, n), str(error)) for n in beside[stem]]
                continue
            entries += [Entry(text, posixpath.join(within, n), caption) for n in beside[stem]]
            if not beside[stem]:
                reason = "there is no picture of the same name beside it of a known extension"
                refused.append(Refused(posixpath.join(within, text), reason))
    return entries, refused


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
        not_utf8 = "" if _is_unicode(text) else " It is not UTF-8 either: save the file as UTF-8."
        raise LimnerError(
            f"{path}, line {error.lineno + first_line - 1}, column {error.colno}: this is not "
            f"valid JSON: {error.msg}; there stands {stands or 'the end of the text'!r}, after "
            f"{before!r}. Look there for a missing or extra comma, quote or bracket.{not_utf8}"
        ) from error
    except ValueError as error:  # a number of more digits than Python reads
        raise LimnerError(f"{path}, line {first_line}: {error}") from error
    except RecursionError as error:
        raise LimnerError(f"{path}: the JSON is nested too deeply. Write a flat list.") from error


def _entry(place: str, row: object, image_key: str) -> Entry:
    """A row of metadata, or what is wrong with it."""
    if not isinstance(row, dict):
        fault = f'{_kind(row)} stands where {{"{image_key}": ..., "text": ...}} should'
        return Entry(place, None, None, fault)
    if missing := _missing_key(row, image_key):
        return Entry(place, None, None, missing)
    return Entry(place, row[image_key], row["text"])


def _missing_key(row: dict[Any, Any], image_key: str) -> str | None:
    """What key a row lacks, and which of those that it has is meant."""
    for key in (image_key, "text"):
        if key not in row:
            found = [str(name) for name in row]
            nearest = [name for name in found if name.lower() in (key, *_ALSO_CALLED[key])]
            nearest = nearest or difflib.get_close_matches(key, found, n=1)
            fix = f"Rename {nearest[0]!a} to '{key}'." if nearest else f"Add '{key}'."
            names = ", ".join(ascii(name)[:40] for name in found[:10]) or "nothing"
            return f"there is no '{key}'; found {names}. {fix}"
    return None


def _kind(data: object) -> str:
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


def require_rows(rows: Sized, refused: list[Refused], folder: Path) -> None:
    """Raises LimnerError with the commonest reasons where no row is left."""
    if rows:
        return
    reasons = [row.reason.split(": ", 1)[-1].rstrip(".") for row in refused]  # without the place
    why = "".join(
        f"\n  {count:,} x {reason}; first: {refused[reasons.index(reason)].key}"
        for reason, count in Counter(reasons).most_common(3)
    )
    raise LimnerError(
        f"{folder}: no usable row of {len(refused):,}. Mend these and try again:{why}"
        if refused
        else f"{folder}: the metadata has no rows. One is needed for each picture."
    )


def _hint(folder: Path) -> str:
    """What was found instead: metadata one level down, or pictures without captions."""
    for name in ("metadata.json", "metadata.jsonl", "metadata.csv"):
        inner = next(folder.glob(f"*/{name}"), None)
        if inner:
            return f" (but {inner.parent} has a {name}: give that folder)"
    bare = sum(path.suffix.lower() in pictures.EXTENSIONS for path in folder.rglob("*"))
    return f" (it has {bare:,} pictures, none with a caption)" if bare else ""
