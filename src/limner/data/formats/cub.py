"""Caltech-UCSD Birds 200-2011 (Wah et al. 2011), with the captions of Reed et al. 2016.

CUB_200_2011/
  images.txt                   1 001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg
  train_test_split.txt         1 0      (picture 1 is of the test split)
  images/<class>/<file>.jpg
  text_c10/<class>/<file>.txt  ten captions, one a line; also text/, cvpr2016_cub/text_c10, or
                               beside the folder, as they are downloaded
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path

from limner.data.dataset import require_rows
from limner.data.formats.classes import readable
from limner.data.formats.encodings import Guesses
from limner.data.formats.entries import BY_HASH, Entry, Found, collect
from limner.data.formats.options import ReadOptions
from limner.data.formats.text_files import existing_folder, read_text
from limner.data.image_paths import ImagePaths
from limner.errors import LimnerError
from limner.messages import shorten

CAPTIONS = ("text_c10", "text/text_c10", "text", "cvpr2016_cub/text_c10")
"""Where the captions are looked for, in the folder and beside it."""


def cub_folder(path: Path) -> Path | None:
    """The folder of images.txt: this one, or CUB_200_2011 within it."""
    for folder in (path, path / "CUB_200_2011"):
        if (folder / "images.txt").is_file() and (folder / "images").is_dir():
            return folder
    return None


def read_cub(path: Path, options: ReadOptions) -> Found:
    """Its rows: held out are those of the test split; captions are the class names, made readable,
    where there are no others."""
    folder = cub_folder(existing_folder(path))
    if folder is None:
        raise LimnerError(
            f"{path} has no images.txt next to a folder images/. For CUB-200-2011, use the folder "
            "that the archive was unpacked to."
        )
    names = _table(folder / "images.txt")
    split_file = folder / "train_test_split.txt"
    split = _table(split_file) if split_file.is_file() else {}
    texts = _captions_folder(folder, next(iter(names.values()), ""))
    paths, guesses = ImagePaths(folder, options.allowed), Guesses()

    def entries() -> Iterator[Entry]:
        for number, name in names.items():
            place, fault = f"images.txt, picture {number}", None
            held_out = None if not split else split.get(number) == "0"
            if split and split.get(number) not in ("0", "1"):
                fault = (
                    f"train_test_split.txt has {shorten(split.get(number))} for it, but must have "
                    "0 or 1"
                )
            captions: str | list[str] = readable(posixpath.dirname(name))
            _, leads_out = paths.key(f"images/{name}")  # the captions then would be read elsewhere
            if texts is not None and not fault and not leads_out:
                file = texts / Path(name).with_suffix(".txt")
                try:
                    captions = _captions(file, options.encoding, guesses)
                except LimnerError as error:
                    fault = str(error)
            yield Entry(place, f"images/{name}", captions, fault, held_out)

    rows, refused = collect(entries(), folder, options.allowed)
    require_rows(rows, refused, folder)
    source = (
        f"captions of {texts}" if texts else "class names as captions, since there are no others"
    )
    rule = "Held out: the test split of train_test_split.txt." if split else BY_HASH
    notes = (str(guesses),) if str(guesses) else ()
    return Found(f"CUB-200-2011, {source}", folder, rows, refused, rule, notes)


def _captions_folder(folder: Path, example: str) -> Path | None:
    """Where the captions are: the folder that has a subfolder for the first picture's class."""
    places = [above / name for above in (folder, folder.parent) for name in CAPTIONS]
    return next((place for place in places if (place / posixpath.dirname(example)).is_dir()), None)


def _captions(file: Path, encoding: str | None, guesses: Guesses) -> list[str]:
    if not file.is_file():
        raise LimnerError(f"its captions file, {file}, is not there")
    # People described a picture in the same words now and then; nothing is lost by saying it once.
    lines = read_text(file, encoding, guesses).split("\n")
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def _table(path: Path) -> dict[str, str]:
    """A file of lines "number value"."""
    found: dict[str, str] = {}
    for line_number, line in enumerate(read_text(path).split("\n"), start=1):
        number, _, value = line.strip().partition(" ")
        if not line.strip():
            continue
        if not value:
            raise LimnerError(f"{path}, line {line_number}: {shorten(line)} is not 'number value'")
        found[number] = value.strip()
    return found
