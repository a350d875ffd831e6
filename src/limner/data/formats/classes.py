"""Class folders, whose names are the captions: red_apple/0001.jpg."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from limner.data import images
from limner.data.dataset import require_rows
from limner.data.folder_walk import FolderWalk
from limner.data.formats.entries import BY_HASH, Entry, Found, collect
from limner.data.formats.options import ReadOptions
from limner.data.formats.text_files import existing_folder

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
        return f"the folder name {name!r} contains no word"
    if _CODE.fullmatch(text):
        return f"the folder name {name!r} is a code; rename it to what the pictures show"
    return None


def are_classes(folder: Path) -> bool:
    """Whether the names of folders are likely to be captions, where nothing else is known.

    At least two folders hold the pictures, none lies above them, and each name has a word that
    is about pictures' contents.
    """
    names = {posixpath.dirname(key) for key in _images(FolderWalk(folder))}
    last = {posixpath.basename(name) for name in names}
    return (
        "" not in names
        and len(last) > 1
        and not any(says_nothing(name) or readable(name).lower() in NO_CAPTION for name in last)
    )


def read_classes(path: Path, options: ReadOptions) -> Found:
    """Its rows: the caption is the name of the folder that a picture lies in.

    Where all is in train/ and in val/ or test/, the latter are held out.
    """
    folder = existing_folder(path)
    walk = FolderWalk(folder)
    keys = list(_images(walk))
    tops = {key.split("/")[0].lower() for key in keys}
    split = bool(tops & TRAIN and tops & HELD_OUT) and tops <= TRAIN | HELD_OUT

    def entries() -> Iterator[Entry]:
        for key in keys:
            name = posixpath.basename(posixpath.dirname(key))
            fault = (
                says_nothing(name) if name else "it is in no folder whose name could be its caption"
            )
            held_out = key.split("/")[0].lower() in HELD_OUT if split else None
            yield Entry(key, key, readable(name), fault, held_out)

    rows, refused = collect(entries(), folder, options.allowed)
    require_rows(rows, refused, folder)
    classes = len({row.captions for row in rows})
    layout = f"the names of {classes:,} folders as captions"
    rule = f"Held out: all in {' and '.join(sorted(tops & HELD_OUT))}." if split else BY_HASH
    return Found(layout, folder, rows, refused, rule, passed_over=walk.passed_over)


def _images(walk: FolderWalk) -> Iterator[str]:
    """The paths of all pictures, relative, with forward slashes, in a stable order."""
    for _, within, names in walk:
        for name in names:
            if os.path.splitext(name)[1].lower() in images.EXTENSIONS:
                yield posixpath.join(within, name)
