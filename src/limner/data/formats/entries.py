"""Pairs of picture and caption as they were written somewhere, checked, and joined to rows."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from limner.data import pictures
from limner.data.rows import Refused, Row
from limner.errors import LimnerError

BY_HASH = (
    "Held out by a hash of the picture's path and data.train_split, so that adding pictures moves "
    "none."
)

MOST_CHARACTERS = 10_000
"""Of a caption; a longer one is a mistake, and slow to read at every pass."""


class Entry(NamedTuple):
    """One pair as it was written, unchecked."""

    place: str
    """Where it stands, for people: "metadata.json, row 3"."""
    image: Any
    text: Any
    fault: str | None = None
    """What is wrong with the row as a whole; its picture may be known all the same."""
    held_out: bool | None = None
    """Whether the data set itself holds the picture out; None: it does not say."""


@dataclass(frozen=True)
class Found:
    """What a folder or file of pictures holds.

    Attributes:
        layout: how it is written, for people.
        folder: what the rows' keys are relative to.
        held_out: who is held out, and by what rule, for people.
    """

    layout: str
    folder: Path
    rows: list[Row]
    refused: list[Refused]
    held_out: str = BY_HASH


def collect(entries: Iterable[Entry], folder: Path) -> tuple[list[Row], list[Refused]]:
    """Checks each pair; rows in the order of first mention, a picture's captions merged."""
    captions: dict[str, list[str]] = {}
    held_out: dict[str, bool] = {}
    refused = []
    listing = Listing(folder)
    for place, image, text, fault, aside in entries:
        key, reason = _check_path(image, listing)
        if fault:
            refused.append(Refused(place if reason else key, f"{place}: {fault}"))
            continue
        texts = text if isinstance(text, list) else [text]
        if not texts:
            reason = reason or 'the list under "text" is empty'
        if reason:
            refused.append(Refused(key, f"{place}: {reason}"))
            continue
        for caption in texts:
            reason = check_caption(caption)
            caption = caption if reason else caption.strip()
            if not reason and caption in captions.get(key, ()):
                reason = "the same picture and text stand in an earlier row"
            if reason:
                refused.append(Refused(key, f"{place}: {reason}"))
            else:
                captions.setdefault(key, []).append(caption)
                if aside is not None:  # held out by any of its rows: never trained on
                    held_out[key] = aside or held_out.get(key, False)
    rows = [Row(key, tuple(texts), held_out.get(key)) for key, texts in captions.items()]
    return rows, refused


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
    if not is_unicode(image):
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


def check_caption(caption: object) -> str | None:
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


def is_unicode(text: str) -> bool:
    """False for lone surrogates, which JSON escapes and file names of other encodings can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def require_rows(rows: Sized, refused: list[Refused], folder: Path | str) -> None:
    """Raises LimnerError with the commonest reasons where no row is left."""
    if rows:
        return
    reasons = [row.reason.split(": ", 1)[-1].rstrip(".") for row in refused]  # without the place
    why = "".join(
        f"\n  {count:,} x {reason}; first: {_where(refused[reasons.index(reason)])}"
        for reason, count in Counter(reasons).most_common(3)
    )
    raise LimnerError(
        f"{folder}: no usable row of {len(refused):,}. Mend these and try again:{why}"
        if refused
        else f"{folder}: the metadata has no rows. One is needed for each picture."
    )


def _where(row: Refused) -> str:
    """The picture, and where its row stands, if that is known."""
    place, colon, _ = row.reason.partition(": ")
    return row.key if not colon or place == row.key else f"{row.key} ({place})"
