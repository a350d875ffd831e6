"""Detect image formats by their first bytes, and the packages that decode what Pillow cannot."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL import Image

READ = (
    *("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF"),
    *("ICO", "ICNS", "PCX", "PSD", "QOI", "SGI", "TGA", "DDS"),
)
"""Formats that are decoded, by Pillow's names. Not among them are those for which it starts another
program (EPS: Ghostscript) or that are no pictures."""

_HEIC = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"})
_AVIF = frozenset({b"avif", b"avis"})
_CONTAINER = frozenset({b"mif1", b"msf1", b"miaf"})  # of either


def first_bytes(image: str | Path | bytes, count: int = 512) -> bytes:
    if isinstance(image, bytes):
        return image[:count]
    with open(image, "rb") as file:
        return file.read(count)


def format_by_bytes(start: bytes) -> str | None:
    """ "HEIC", "AVIF", "JPEG XL", "video": what Pillow may not know, by a file's first bytes."""
    if start.startswith(b"\xff\x0a") or start.startswith(b"\0\0\0\x0cJXL \r\n\x87\n"):
        return "JPEG XL"
    if start[4:8] != b"ftyp":
        return None
    length = min(int.from_bytes(start[:4], "big"), len(start))
    brands = [start[8:12], *(start[i : i + 4] for i in range(16, length, 4))]
    for kind, known in (("AVIF", _AVIF), ("HEIC", _HEIC)):
        if brands[0] in known or (brands[0] in _CONTAINER and set(brands) & known):
            return kind
    return "HEIC" if brands[0] in _CONTAINER else "video"


@cache
def formats() -> tuple[str, ...]:
    """Those of READ that can be read here."""
    Image.init()
    return tuple(name for name in READ if name in Image.OPEN)


def learn_heic() -> bool:
    """Have Pillow read HEIC, if pillow-heif is installed; whether it does."""
    if "HEIF" in formats():
        return True
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener(thumbnails=False)
    formats.cache_clear()
    return "HEIF" in formats()


def how_to_read(kind: str) -> str:
    """What to do about a picture of a format that is not read here."""
    ways = {
        "HEIC": 'a HEIC picture, as iPhones take them. To read it, run: pip install "limner[heic]" '
        "(or pip install pillow-heif); or convert it to JPEG",
        "AVIF": "an AVIF picture, which this build of Pillow does not support. To read it, run: "
        "pip install --upgrade pillow; or convert it to JPEG",
        "JPEG XL": "a JPEG XL picture, which is not supported. Convert it to PNG or JPEG: djxl "
        "a.jxl a.png (if it was made from a JPEG, djxl a.jxl a.jpg restores that JPEG)",
        "video": "a video (or a picture in an unknown format). Save a frame of it as JPEG",
    }
    return f"this is {ways[kind]}"


def what_it_is(start: bytes) -> str:
    """What a file that is no picture looks like, for its owner."""
    if not start:
        return "the file is empty (0 bytes)"
    if not any(start):
        return "the file contains only zero bytes, as after an interrupted download"
    if kind := format_by_bytes(start):
        return how_to_read(kind)
    if start.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6", b"%PDF")):
        return "this is PostScript or PDF: convert it to PNG"
    text = start.decode("utf-8", errors="replace").lstrip("\ufeff \r\n\t")
    if "\ufffd" in text[:-1] or "\0" in text:
        return "the file is not a picture in a supported format (JPEG, PNG, WebP, GIF, ...)"
    if "<svg" in text:
        return "this is an SVG drawing: convert it to PNG"
    if text.lower().startswith(("<!doctype html", "<html")):
        return "this is a web page, saved instead of a picture"
    return f"the file is text, not a picture: it begins with {text[:30]!r}"
