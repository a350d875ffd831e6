"""Save images with the settings that made them in their metadata."""

from __future__ import annotations

import errno
import json
import os
import struct
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from limner.errors import LimnerError
from limner.files.atomic import replacing
from limner.version import __version__

KEY = "limner"
"""Of `picture.info`, and of the text in a PNG: prompt, seed, and settings as JSON."""

PROGRAM, SOFTWARE = "Limner", 0x0131
"""What the EXIF of a drawing says, and in which of its tags."""
WITH_EXIF = ("JPEG", "MPO", "WEBP", "TIFF", "AVIF")
"""Formats of Pillow's, PNG apart, whose files say that Limner drew them."""


def remember(picture: Image.Image, how: dict[str, Any]) -> Image.Image:
    """The picture, with what is not None of `how` in its `info`."""
    known = {key: value for key, value in how.items() if value is not None}
    picture.info[KEY] = json.dumps({"limner_version": __version__, **known}, ensure_ascii=False)
    return picture


def how_drawn(picture: Image.Image) -> dict[str, Any]:
    """The sampling settings stored in a picture or its PNG file; {}: none."""
    try:
        found = json.loads(picture.info.get(KEY, "{}"))
    except (ValueError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def check_savable(path: Path, height: int | None = None, width: int | None = None) -> None:
    """Check before sampling that pictures can be written under this name.

    Args:
        height, width: pixels, where they are known.

    Raises:
        LimnerError: no file of this name, in this place, or of this kind and size can be written.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    is_folder = os.path.isdir(path)  # also of names that no file could have
    if is_folder or kind is None or kind not in Image.SAVE:
        if is_folder:
            why = "is a folder"
        elif kind is not None:
            why = "is of a kind that Pillow reads and does not write"
        elif path.suffix:
            why = "does not end in a picture format"
        else:
            why = "has no ending, such as .png, that says its kind"
        raise LimnerError(f"--output {path} {why}; name a file such as apple.png")
    try:
        # What kinds of files limit is a side; a size that is none is told by the generator.
        for size in ((max(1, width or 1), 1), (1, max(1, height or 1))):
            save_picture(Image.new("RGB", size), BytesIO(), kind)
    except (OSError, ValueError, KeyError, MemoryError, struct.error) as error:
        raise LimnerError(
            f"--output {path}: {kind} cannot hold a picture of {width or 1} x {height or 1} pixels "
            f"({_reason(error)}); take a name that ends in .png, or fewer pixels"
        ) from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.exists()
        with path.open("ab"):
            pass
        if not there:
            path.unlink()
    except (OSError, ValueError) as error:
        raise LimnerError(
            f"--output {path} cannot be written ({_reason(error)}); name another file"
        ) from None


def check_not_foreign(paths: Iterable[Path]) -> None:
    """Before anything is drawn: whether the files that are there already are drawings of Limner's,
    or empty. Raises LimnerError naming one that is not."""
    for path in paths:
        if os.path.lexists(path) and not is_drawing(path):
            raise LimnerError(
                f"--output {path} is there already and is no drawing of Limner's, so it is not "
                "replaced by one: name another file"
            )


def is_drawing(path: Path) -> bool:
    """Whether a file says of itself that Limner drew it, or holds nothing. Kinds that have no place
    to say so (BMP, GIF, PPM, ...) never do."""
    try:
        if path.stat().st_size == 0:
            return True
        with warnings.catch_warnings(), Image.open(path) as picture:
            warnings.simplefilter("ignore")  # nothing is decoded
            said = picture.info.get("Software"), picture.getexif().get(SOFTWARE)
            return KEY in picture.info or PROGRAM in said
    except Exception:  # whatever a file that is no picture makes Pillow raise
        return False


def save_all(pictures: Sequence[Image.Image], paths: Sequence[Path]) -> Iterator[Path]:
    """Write each, and give its path. What is drawn is not lost where a name cannot be written, be
    it that a disk is full by now: it goes as PNG to the system's folder for temporary files.

    Raises:
        LimnerError: at the end, naming what could not be written, why, and where it is instead.
    """
    failed: list[str] = []
    refuge: Path | None = None
    for picture, path in zip(pictures, paths, strict=True):
        try:
            if os.path.lexists(path) and not is_drawing(path):  # it came while this was drawn
                raise FileExistsError(errno.EEXIST, "something else was put there meanwhile", path)
            save_picture(picture, path)
            yield path
        except (OSError, ValueError, KeyError, struct.error) as error:
            refuge = refuge or Path(tempfile.mkdtemp(prefix="limner-"))
            other = refuge / f"{len(failed)}.png"
            save_picture(picture, other, "PNG")
            failed.append(f"{path} ({_reason(error)}) is {other} instead")
    if failed:
        raise LimnerError("could not be written where they should be:\n" + "\n".join(failed))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__


def save_picture(picture: Image.Image, to: Path | BytesIO, format: str | None = None) -> None:
    """Write it, whole or not at all; a PNG holds in its text (iTXt `limner`) how it was drawn.
    Raises OSError.

    Args:
        format: of Pillow's, such as "PNG"; None: that of the file's name.
    """
    info = PngImagePlugin.PngInfo()
    if KEY in picture.info:
        info.add_itxt(KEY, picture.info[KEY])
    kind = format or Image.registered_extensions()[Path(str(to)).suffix.lower()]
    options: dict[str, Any] = {}
    if kind == "PNG":
        options = {"pnginfo": info}
    elif kind in WITH_EXIF and KEY in picture.info:
        exif = Image.Exif()
        exif[SOFTWARE] = PROGRAM
        options = {"exif": exif}
    if not isinstance(to, Path):
        picture.save(to, format=kind, **options)
        return
    with replacing(to, durable=False) as staging:
        picture.save(staging, format=kind, **options)
