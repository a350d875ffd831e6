"""Folders whose names are the captions, as data sets of classes have them: red_apple/0001.jpg."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from limner.data import pictures
from limner.data.formats.entries import BY_HASH, Entry, Found, collect, require_rows
from limner.data.formats.reading import existing_folder

NO_CAPTION = frozenset(
    {
        *("image", "images", "img", "imgs", "jpg", "jpeg", "png", "picture", "pictures", "pics"),
        *("photo", "photos", "data", "dataset", "raw", "files", "media", "downloads"),
        *("train", "training", "val", "valid", "validation", "dev", "test", "testing", "all"),
    }
)
"""Names that say what is in a folder of files, not what is in the pictures."""
TRAIN, HELD_OUT = {"train", "training"}, {"val", "valid", "validation", "dev", "test", "testing"}

_NUMBER = re.compile(r"^\d+[.\-_\s]+")  # "001.Black_footed_Albatross"
_CODE = re.compile(r"n\d{8}")  # WordNet's, as ImageNet names its folders


def readable(name: str) -> str:
    """A class's name as a caption: "001.Black_footed_Albatross" is "Black footed Albatross"."""
    name = _NUMBER.sub("", unicodedata.normalize("NFC", name))
    return " ".join(re.sub(r"[_\-]+", " ", name).split())


def says_nothing(name: str) -> str | None:
    """Why a folder's name is no caption; None if it may be one."""
    text = readable(name)
    if not any(letter.isalpha() for letter in text):
        return f"the folder's name {name!r} has no word in it"
    if _CODE.fullmatch(text):
        return f"the folder's name {name!r} is a code: rename it to what the pictures show"
    return None


def are_classes(folder: Path) -> bool:
    """Whether the names of folders are likely to be captions, where nothing else is known.

    At least two folders hold the pictures, none lies above them, and each name has a word that
    is about pictures' contents.
    """
    names = {posixpath.dirname(key) for key in _pictures(folder)}
    last = {posixpath.basename(name) for name in names}
    return (
        "" not in names
        and len(last) > 1
        and not any(says_nothing(name) or readable(name).lower() in NO_CAPTION for name in last)
    )


def read_classes(path: Path) -> Found:
    """Its rows: the caption is the name of the folder that a picture lies in.

    Where all is in train/ and in val/ or test/, the latter are held out.
    """
    folder = existing_folder(path)
    keys = list(_pictures(folder))
    tops = {key.split("/")[0].lower() for key in keys}
    split = bool(tops & TRAIN and tops & HELD_OUT) and tops <= TRAIN | HELD_OUT

    def entries() -> Iterator[Entry]:
        for key in keys:
            name = posixpath.basename(posixpath.dirname(key))
            fault = says_nothing(name) if name else "it lies in no folder that could name it"
            held_out = key.split("/")[0].lower() in HELD_OUT if split else None
            yield Entry(key, key, readable(name), fault, held_out)

    rows, refused = collect(entries(), folder)
    require_rows(rows, refused, folder)
    classes = len({row.captions for row in rows})
    layout = f"the names of {classes:,} folders as captions"
    rule = f"Held out: all in {' and '.join(sorted(tops & HELD_OUT))}." if split else BY_HASH
    return Found(layout, folder, rows, refused, rule)


def _pictures(folder: Path) -> Iterator[str]:
    """The paths of all pictures, relative, with forward slashes, in a stable order."""
    for directory, subfolders, names in os.walk(folder):
        # Names with a leading dot belong to the system (macOS puts ._apple.jpg beside apple.jpg).
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        within = Path(directory).relative_to(folder).as_posix().removeprefix(".")
        for name in sorted(names):
            extension = os.path.splitext(name)[1].lower()
            if extension in pictures.EXTENSIONS and not name.startswith("."):
                yield posixpath.join(within, name)
