"""Convert any Pillow image to 8-bit sRGB: upright, with transparency on white."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from limner.data.decoding import color

WHITE = (255, 255, 255)
ORIENTATION = 0x0112
"""EXIF's tag; its values 5 to 8 lay a picture on its side."""
_WIDTH, _HEIGHT = 0x0100, 0x0101  # TIFF's tags


def orientation(image: Image.Image) -> int:
    """How the picture is to be turned, 1 (not at all) to 8. Programs write the value as text,
    fractions, lists; what is none of the eight counts as 1."""
    try:
        value = image.getexif().get(ORIENTATION)
        if isinstance(value, (tuple, list)):
            value = value[0]
        if isinstance(value, bytes):
            value = value.strip(b"\0 ").decode("ascii") if len(value) > 1 else value[0]
        number = float(value)  # type: ignore[arg-type]
    except Exception:  # EXIF data that are damaged are answered with nearly any
        return 1
    return int(number) if number in range(1, 9) else 1


def size_upright(image: Image.Image) -> tuple[int, int]:
    """(width, height) of an opened picture, turned as its EXIF data say.

    Pillow decodes a PNG for this where its EXIF data do not stand before the pixels: take a share
    of the budget first.
    """
    width, height = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Newer releases of Pillow give the size turned already, before the picture is.
        width, height = image.tag_v2.get(_WIDTH, width), image.tag_v2.get(_HEIGHT, height)
    return (height, width) if orientation(image) >= 5 else (width, height)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF data say (EXIF 2.3, 4.6.4)."""
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def as_rgb(image: Image.Image) -> Image.Image:
    """Any picture of Pillow's as RGB in sRGB, on white where it is transparent."""
    convert = color.conversion(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        return _on_white(image, convert)
    if convert is not None:
        return convert(image)
    if image.mode == "LAB":
        return color.from_lab(image)
    return image if image.mode == "RGB" else image.convert("RGB")


_STRIP = 2**20
"""Pixels of a transparent picture that are laid on white at a time: it takes several copies."""


def _on_white(
    image: Image.Image, convert: Callable[[Image.Image], Image.Image] | None
) -> Image.Image:
    paper = Image.new("RGB", image.size, WHITE)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(image.height, top + rows))
        strip = image.crop(box).convert("RGBA")
        if convert is not None:
            alpha = strip.getchannel("A")
            strip = convert(strip.convert("RGB"))
            strip.putalpha(alpha)
        white = Image.new("RGBA", strip.size, (*WHITE, 255))
        paper.paste(Image.alpha_composite(white, strip).convert("RGB"), box)
    return paper


def mend_transparency(image: ImageFile.ImageFile) -> None:
    """The one colour that is transparent in a PNG of 16 bits is given in 16 bits; of a coloured one
    Pillow reads the upper eight of each channel."""
    transparent = image.info.get("transparency")
    if isinstance(transparent, tuple) and image.tile and image.tile[0].args == "RGB;16B":
        image.info["transparency"] = tuple(level >> 8 for level in transparent)


_UPPER_8 = ((np.arange(65536) + 128) // 257).astype(np.uint8)
"""Levels of 16 bits in 8, rounded: 65535 = 257 * 255."""


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey levels of 16 bits (modes I;16 and I) scaled to 8: Pillow's `convert` would clip them.
    The level that is transparent, if the file names one, becomes an alpha channel."""
    levels = np.asarray(image)
    if image.mode == "F" or levels.min() < 0 or levels.max() > 65535:
        raise ValueError("its values are neither 8 nor 16 bits, so white is not defined")
    grey = Image.fromarray(_UPPER_8[levels])
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        opaque = np.where(levels == transparent, 0, 255).astype(np.uint8)
        grey.putalpha(Image.fromarray(opaque))
    return grey
