"""Convert picture files to cropped uint8 RGB arrays, and arrays to tensors and back."""

from __future__ import annotations

import contextlib
import io
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError

from limner.data import regular_files
from limner.data.dataset import ImageError, UnsupportedFormat
from limner.data.decoding import color
from limner.data.decoding.decode_budget import BUDGET, BYTES_PER_PIXEL
from limner.data.decoding.image_formats import (
    first_bytes,
    format_by_bytes,
    formats,
    learn_heic,
    what_it_is,
)
from limner.data.decoding.image_modes import WHITE, as_rgb, mend_transparency, size_upright, upright
from limner.data.decoding.jpeg_holes import lost_part
from limner.data.decoding.png_chunks import SIGNATURE, without_texts
from limner.data.regular_files import why_not_regular
from limner.files.fingerprints import MAY_PASS, RETRY_AFTER

Crop = Literal["center", "pad"]
Size = int | tuple[int, int]
"""Of a picture in pixels: the side of a square, or (height, width)."""

EXTENSIONS = frozenset(
    {
        *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jfif", ".ppm"),
        *(".pgm", ".avif", ".heic", ".heif", ".jxl"),
    }
)
"""File names that are looked at as pictures, in lower case."""

DECODING = 2
"""Version of the decoding, raised when the same file gives other pixels: what was computed from the
old ones is then computed anew. 2: colour profiles are applied."""

DRAWN_SIDE = 128
"""Pixels of the PNG that stands for a picture of a built-in set, which can be drawn at any size."""

_REDUCING_GAP = 3.0
"""From this factor above the target, Pillow averages boxes before it filters: fast, and within
rounding of the filter alone (Pillow's own advice for the value)."""


def decode(
    source: str | Path | bytes, image_size: Size, crop: Crop = "center", name: str | None = None
) -> np.ndarray:
    """Any picture file, or its bytes, in a size: uint8 [height, width, 3], RGB.

    The picture is turned as its EXIF says, its colours become sRGB, it is laid on white where it is
    transparent, and scaled with an antialiasing filter: "center" scales it to cover `image_size`
    and keeps the middle, "pad" keeps the whole picture on white paper. Smaller pictures are
    enlarged. Of an animation the first frame counts. Raises ImageError, which calls the picture
    `name` (or its path).
    """
    height, width = height_and_width(image_size)
    name = _called(source, name)
    with contextlib.ExitStack() as held:
        image, convert = _decoded(source, name, max(height, width), 2, held)
        fitted = fit(image, height, width, crop)
        return np.array(fitted if convert is None else convert(fitted))


def height_and_width(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def upright_size(source: str | Path | bytes) -> tuple[int, int] | None:
    """(height, width) in pixels of a picture turned as its EXIF says, from its header (and from all
    of a PNG that may say it at its end); None where that cannot be read, which decoding will say
    more about."""
    try:
        with opened(source) as image, BUDGET.hold(decoded_bytes(image)):
            width, height = size_upright(image)
    except Exception:  # a damaged header is answered with nearly any
        return None
    return height, width


def decoded_bytes(image: Image.Image) -> int:
    """What a picture takes of the budget when it is decoded."""
    return image.width * image.height * BYTES_PER_PIXEL


@contextlib.contextmanager
def opened(source: str | Path | bytes) -> Iterator[ImageFile.ImageFile]:
    """A picture file of a format that is read, its header only: not decoded yet.

    Raises what Pillow does, or NotAnImageFile. Pillow's warnings of what it can still read, such
    as odd EXIF data or 100 megapixels, are not news for every epoch.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(source, bytes):
            if len(source) > regular_files.MAX_IMAGE_BYTES:
                raise NotAnImageFile(f"it has {len(source):,} bytes")
        elif reason := why_not_regular(source, regular_files.MAX_IMAGE_BYTES):
            raise NotAnImageFile(reason)
        elif os.stat(source).st_size == 0:  # files of the kernel say so, too, and never end
            raise UnidentifiedImageError("0 bytes")
        info: dict[str, bytes | None] = {}
        try:
            image = Image.open(_source(source), formats=formats())
        except ValueError:
            if (plain := _without_texts(source)) is None:
                raise
            image = Image.open(io.BytesIO(plain[0]), formats=formats())
            info = plain[1]
        with image:
            image.info.update(info)
            yield image


def _source(source: str | Path | bytes) -> io.BytesIO | str | Path:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _without_texts(source: str | Path | bytes) -> tuple[bytes, dict[str, bytes | None]] | None:
    """A PNG without long texts (see `png_chunks`); None where there are none to be taken out."""
    data = _content(source)
    if not data.startswith(SIGNATURE):
        return None
    plain = without_texts(data)
    return plain if len(plain[0]) < len(data) else None


def _content(source: str | Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else read_image(Path(source))


class NotAnImageFile(Exception):
    """What is not to be opened: a device, or a file of absurd size."""


def read_image(path: Path) -> bytes:
    """A picture file's content. Raises OSError, or NotAnImageFile."""
    if reason := why_not_regular(path, regular_files.MAX_IMAGE_BYTES):
        raise NotAnImageFile(reason)
    return path.read_bytes()


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
    source: str | Path | bytes,
    name: str | None = None,
    shorter_side: int | None = None,
    retries: int = 2,
) -> Image.Image:
    """The picture upright, in sRGB, on white; fully decoded, so that damage anywhere shows.

    With `shorter_side` in pixels a big JPEG is decoded at a fraction of its size (never below
    twice that side), which is several times faster. Where the disk or the network fails, it is
    tried `retries` times more. Raises ImageError.
    """
    with opened_rgb(source, name, shorter_side, retries) as image:
        return image


@contextlib.contextmanager
def opened_rgb(
    source: str | Path | bytes,
    name: str | None = None,
    shorter_side: int | None = None,
    retries: int = 2,
) -> Iterator[Image.Image]:
    """The same for threads: as long as the block runs, the picture counts among the pixels that a
    process may hold at once."""
    with contextlib.ExitStack() as held:
        called = _called(source, name)
        image, convert = _decoded(source, called, shorter_side, retries, held)
        yield image if convert is None else convert(image)


def _called(source: str | Path | bytes, name: str | None) -> str:
    return name or ("the picture" if isinstance(source, bytes) else str(source))


Decoded = tuple[Image.Image, Callable[[Image.Image], Image.Image] | None]
"""An RGB picture, and what makes its colours sRGB if they are not yet: a large one is quicker
scaled first."""


def _decoded(
    source: str | Path | bytes,
    name: str,
    shorter_side: int | None,
    retries: int,
    held: contextlib.ExitStack,
) -> Decoded:
    try:
        with opened(source) as image:
            if shorter_side is not None:
                image.draft(None, (2 * shorter_side, 2 * shorter_side))
            held.enter_context(BUDGET.hold(decoded_bytes(image)))
            mend_transparency(image)
            image.load()
            if image.format in ("JPEG", "MPO") and (lost := lost_part(_content(source))):
                raise _undecodable(name, ValueError(lost))
            turned = upright(image)
            if turned.mode == "RGB" and not turned.has_transparency_data:
                return turned, color.conversion(turned)
            return as_rgb(turned), None
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: the picture has too many pixels to decode safely ({_pixels(error)}). Scale "
            "it down, or remove its row."
        ) from error
    except UnidentifiedImageError as error:
        return _unidentified(source, name, shorter_side, retries, held, error)
    except NotAnImageFile as error:
        raise ImageError(f"{name}: the file cannot be read: {error}. Remove its row.") from error
    except FileNotFoundError as error:
        raise ImageError(
            f"{name}: the picture file is not there. Put it back, or remove its row."
        ) from error
    except OSError as error:
        if error.errno is None:  # a decoder's own words
            raise _undecodable(name, error) from error
        if retries and error.errno in MAY_PASS:
            held.close()
            time.sleep(RETRY_AFTER / retries)
            return _decoded(source, name, shorter_side, retries - 1, held)
        raise ImageError(
            f"{name}: the file cannot be read ({error.strerror}). Check the disk and the "
            "permissions, or remove its row."
        ) from error
    except ValueError as error:
        if (plain := _without_texts(source)) is None:
            raise _undecodable(name, error) from error
        held.close()
        return _decoded(plain[0], name, shorter_side, 0, held)
    except Exception as error:  # decoders answer damaged bytes with nearly any exception
        raise _undecodable(name, error) from error


def _unidentified(
    source: str | Path | bytes,
    name: str,
    shorter_side: int | None,
    retries: int,
    held: contextlib.ExitStack,
    error: UnidentifiedImageError,
) -> Decoded:
    """A format for which a package is there to be loaded; or the error that says what it is."""
    try:
        start = b"" if str(error) == "0 bytes" else first_bytes(source)
    except OSError:
        raise _undecodable(name, error) from error
    kind = format_by_bytes(start)
    if kind == "HEIC" and "HEIF" not in formats() and learn_heic():
        held.close()
        return _decoded(source, name, shorter_side, retries, held)
    if (kind == "HEIC" and "HEIF" in formats()) or (kind == "AVIF" and "AVIF" in formats()):
        raise _undecodable(name, ValueError(f"a damaged {kind} picture")) from error
    said = f"{name}: {what_it_is(start)}. Replace it, or remove its row."
    raise (UnsupportedFormat if kind else ImageError)(said) from error


def _pixels(error: Image.DecompressionBombError) -> str:
    numbers = [int(number) for number in re.findall(r"\d+", str(error))]
    if len(numbers) < 2:
        return str(error)
    return f"{numbers[0]:,} pixels; the maximum is {numbers[1]:,}"


def png_bytes(source: np.ndarray) -> bytes:
    """A picture, uint8 [H, W, 3], as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(source).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def refitted(source: np.ndarray, size: Size) -> np.ndarray:
    """A decoded picture, uint8 [H, W, 3], in another size: see `decode`."""
    return np.array(fit(Image.fromarray(source), *height_and_width(size)))


def _undecodable(name: str, error: Exception) -> ImageError:
    return ImageError(
        f"{name}: the picture cannot be decoded ({str(error) or type(error).__name__}): the file "
        "is damaged or not supported. Save it again as PNG or JPEG, or remove its row."
    )


def to_tensor(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 [..., H, W, 3] to float32 [..., 3, H, W] in [-1, 1]."""
    return torch.as_tensor(images).movedim(-1, -3).float() / 127.5 - 1


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """Float [B, 3, H, W] in [-1, 1] to B RGB images.

    Values outside are clamped; the rest is rounded to the nearest of the 256 levels, so that
    `to_pil(to_tensor(picture))` is the same picture.
    """
    levels = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(array) for array in levels.movedim(-3, -1).cpu().contiguous().numpy()]


def _pad(image: Image.Image, height: int, width: int) -> Image.Image:
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)
    paper = Image.new("RGB", (width, height), WHITE)
    paper.paste(small, ((width - size[0]) // 2, (height - size[1]) // 2))
    return paper
