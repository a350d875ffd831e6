"""Pictures in and out: any file to a square of uint8 RGB, and between that and tensors."""

from __future__ import annotations

import errno
import io
import time
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from limner.data.rows import PictureError

Crop = Literal["center", "pad"]
Size = int | tuple[int, int]
"""Of a picture in pixels: the side of a square, or (height, width)."""

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jfif", ".ppm", ".pgm"}
)
"""File names that are looked at as pictures, in lower case."""

DRAWN_SIDE = 128
"""Pixels of the PNG that stands for a picture of a built-in set, which can be drawn at any size."""

_MAY_PASS = (errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, getattr(errno, "ESTALE", -1))
"""Errors of reading that another try may not meet, as on a network drive."""
RETRY_AFTER = 0.4  # seconds before the last try, half of it before the one before

_WHITE = (255, 255, 255)
ORIENTATION = 0x0112
"""EXIF's tag; its values 5 to 8 lay a picture on its side."""
_REDUCING_GAP = 3.0
"""From this factor above the target, Pillow averages boxes before it filters: fast, and within
rounding of the filter alone (Pillow's own advice for the value)."""


def decode(
    picture: str | Path | bytes, image_size: Size, crop: Crop = "center", name: str | None = None
) -> np.ndarray:
    """Any picture file, or its bytes, in a size: uint8 [height, width, 3], RGB.

    The picture is turned as its EXIF says, laid on white where it is transparent, and scaled with
    an antialiasing filter: "center" scales it to cover `image_size` and keeps the middle,
    "pad" keeps the whole picture on white paper. Smaller pictures are enlarged. Of an animation
    the first frame counts. Raises PictureError, which calls the picture `name` (or its path).
    """
    height, width = height_and_width(image_size)
    image = open_rgb(picture, name, shorter_side=max(height, width))
    return np.array(fit(image, height, width, crop))


def height_and_width(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def upright_size(picture: str | Path | bytes) -> tuple[int, int] | None:
    """(height, width) in pixels of a picture turned as its EXIF says, from its header alone; None
    where that cannot be read, which decoding will say more about."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(
                io.BytesIO(picture) if isinstance(picture, bytes) else picture
            ) as image:
                width, height = image.size
                turned = image.getexif().get(ORIENTATION) in (5, 6, 7, 8)
    except Exception:  # a damaged header is answered with nearly any
        return None
    return (width, height) if turned else (height, width)


def fit(image: Image.Image, height: int, width: int, crop: Crop = "center") -> Image.Image:
    """An RGB picture of any size as `height` x `width` pixels: see `decode`."""
    if crop == "pad":
        return _pad(image, height, width)
    # Cropping inside resize never makes the whole picture larger, however long and thin it is.
    return image.resize(
        (width, height),
        Image.Resampling.LANCZOS,
        box=kept_part(image.width, image.height, height, width),
        reducing_gap=_REDUCING_GAP,
    )


def kept_part(
    width: int, height: int, to_height: int, to_width: int
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of what a crop to `to_height` x `to_width` leaves of a picture:
    the largest part with these sides' ratio, in the middle, in pixels of the picture."""
    part: tuple[float, float]  # one of its sides is the picture's own, exactly
    if width * to_height <= height * to_width:
        part = (width, width * to_height / to_width)
    else:
        part = (height * to_width / to_height, height)
    left, top = (width - part[0]) / 2, (height - part[1]) / 2
    return left, top, left + part[0], top + part[1]


def open_rgb(
    picture: str | Path | bytes,
    name: str | None = None,
    shorter_side: int | None = None,
    retries: int = 2,
) -> Image.Image:
    """The picture upright, in RGB, on white; fully decoded, so that damage anywhere shows.

    With `shorter_side` in pixels a big JPEG is decoded at a fraction of its size (never below
    twice that side), which is several times faster. Where the disk or the network fails, it is
    tried `retries` times more. Raises PictureError.
    """
    name = name or ("the picture" if isinstance(picture, bytes) else str(picture))
    try:
        # Pillow warns of what it can still read, such as odd EXIF data or 100 megapixels: not news
        # for every epoch. What it cannot read is an error below.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(
                io.BytesIO(picture) if isinstance(picture, bytes) else picture
            ) as image:
                if shorter_side is not None:
                    image.draft(None, (2 * shorter_side, 2 * shorter_side))
                image.load()
                return as_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise PictureError(
            f"{name}: the picture has more pixels than are safe to decode ({error}). "
            "Scale it down, or take its row out."
        ) from error
    except UnidentifiedImageError as error:
        raise PictureError(
            f"{name}: {_what_it_is(picture)}. Replace it, or take its row out."
        ) from error
    except FileNotFoundError as error:
        raise PictureError(
            f"{name}: the picture file is not there. Put it back, or take its row out."
        ) from error
    except OSError as error:
        if error.errno is None:  # a decoder's own words
            raise _undecodable(name, error) from error
        if retries and error.errno in _MAY_PASS:
            time.sleep(RETRY_AFTER / retries)
            return open_rgb(picture, name, shorter_side, retries - 1)
        raise PictureError(
            f"{name}: the file cannot be read ({error.strerror}). Check the disk and the "
            "permissions, or take its row out."
        ) from error
    except Exception as error:  # decoders answer damaged bytes with nearly any exception
        raise _undecodable(name, error) from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Any picture of Pillow's as RGB, on white where it is transparent."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (*_WHITE, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def png_bytes(picture: np.ndarray) -> bytes:
    """A picture, uint8 [H, W, 3], as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def refitted(picture: np.ndarray, size: Size) -> np.ndarray:
    """A decoded picture, uint8 [H, W, 3], in another size: see `decode`."""
    return np.array(fit(Image.fromarray(picture), *height_and_width(size)))


def _undecodable(name: str, error: Exception) -> PictureError:
    return PictureError(
        f"{name}: the picture cannot be decoded ({str(error) or type(error).__name__}): "
        "the file is damaged or of a kind that is not supported. "
        "Save it again as PNG or JPEG, or take its row out."
    )


def to_tensor(pictures: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 [..., H, W, 3] to float32 [..., 3, H, W] in [-1, 1]."""
    return torch.as_tensor(pictures).movedim(-1, -3).float() / 127.5 - 1


def to_pil(pictures: torch.Tensor) -> list[Image.Image]:
    """Float [B, 3, H, W] in [-1, 1] to B RGB images.

    Values outside are clamped; the rest is rounded to the nearest of the 256 levels, so that
    `to_pil(to_tensor(picture))` is the same picture.
    """
    levels = ((pictures.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(array) for array in levels.movedim(-3, -1).cpu().contiguous().numpy()]


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey levels of 16 bits (modes I;16 and I) scaled to 8: Pillow's `convert` would clip them."""
    levels = np.asarray(image)
    if image.mode == "F" or levels.min() < 0 or levels.max() > 65535:
        raise ValueError("its levels are not 8 or 16 bits, so that white is not defined")
    return Image.fromarray(np.round(levels / 257).astype(np.uint8))  # 65535 = 257 * 255


def _pad(image: Image.Image, height: int, width: int) -> Image.Image:
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)
    paper = Image.new("RGB", (width, height), _WHITE)
    paper.paste(small, ((width - size[0]) // 2, (height - size[1]) // 2))
    return paper


def _what_it_is(picture: str | Path | bytes) -> str:
    """What a file that is no picture looks like, for its owner."""
    if isinstance(picture, bytes):
        start = picture[:512]
    else:
        with open(picture, "rb") as file:
            start = file.read(512)
    if not start:
        return "the file is empty (0 bytes)"
    if not any(start):
        return "the file holds only zero bytes, as an interrupted download leaves it"
    if start[4:8] == b"ftyp":
        return "this is a HEIC, AVIF or video file, which is not supported: convert it to JPEG"
    text = start.decode("utf-8", errors="replace").lstrip("\ufeff \r\n\t")
    if "\ufffd" in text[:-1] or "\0" in text:
        return "the file is not a picture of a kind that is supported (JPEG, PNG, WebP, GIF, ...)"
    if "<svg" in text:
        return "this is an SVG drawing: convert it to PNG"
    if text.lower().startswith(("<!doctype html", "<html")):
        return "this is a web page, saved in place of a picture"
    return f"the file is text, not a picture: it begins with {text[:30]!r}"
