"""What one picture is: its header, its faults, and what it is compared by."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from limner.data.dataset import DamagedFile, ImageDataset, ImageError, Row, UnsupportedFormat
from limner.data.decoding.color import profile_of
from limner.data.decoding.decode_budget import BUDGET
from limner.data.decoding.image_modes import size_upright
from limner.data.images import (
    NotAnImageFile,
    decoded_bytes,
    kept_part,
    opened,
    opened_rgb,
    read_image,
)
from limner.files.fingerprints import digest

SMALL = 32
"""Side to which pictures are scaled, whole, to be compared."""
_DECODED = 64
"""Pixels: a big JPEG is decoded at a fraction of its size, never below twice this side."""
_ONE_COLOUR = 2
"""Levels of 256 by which a channel of a blank picture may vary."""
MOST_CUT = 0.5
_TINY = 4


@dataclass(frozen=True, slots=True)
class Fault:
    kind: str
    said: str


@dataclass(frozen=True, slots=True)
class Looked:
    """A picture that can be decoded."""

    width: int
    height: int
    """Upright, pixels."""
    format: str
    mode: str
    pixels: bytes
    """The hash of its decoded pixels, 16 bytes."""
    small: np.ndarray
    """The whole picture, uint8 [32, 32, 3]."""
    blank: bool
    faults: tuple[Fault, ...] = field(default=())


def look(dataset: ImageDataset, row: Row, size: tuple[int, int], drawn: bool) -> Looked | Fault:
    """Decode a row's picture once, to its end, and say all that is known of it.

    Args:
        size: (height, width) of the training picture, pixels.
        drawn: the set draws at any size, so that the size means nothing.
    """
    try:
        source = dataset.image(row)
        data = _bytes(source)
        with opened_rgb(data, row.key, shorter_side=_DECODED) as rgb:
            small = rgb.resize((SMALL, SMALL), Image.Resampling.LANCZOS, reducing_gap=3.0)
            levels = np.array(rgb.getextrema())  # lowest and highest of each channel
            pixels = digest(f"{rgb.width} {rgb.height}", rgb.tobytes())
    except ImageError as error:
        return Fault(_kind_of(error), str(error))
    try:
        with opened(data) as header, BUDGET.hold(decoded_bytes(header)):
            width, height = size_upright(header)
            kind, mode = header.format or "", header.mode
            transparent = header.has_transparency_data and _is_transparent(header)
            profile = profile_of(header)
            frames = _frames(header) if kind != "MPO" else "1"
    except OSError as error:  # of a disk that gave the file a moment ago
        return Fault("unreadable", f"{row.key}: the file cannot be read ({error})")
    faults = [] if drawn else list(_of_size(width, height, *size))
    blank = bool((levels[:, 1] - levels[:, 0] <= _ONE_COLOUR).all())
    if blank:
        faults.append(Fault("blank", f"one colour, about {tuple(levels[:, 0].tolist())}"))
    faults += _of_kind(row, source, kind, mode, frames, transparent)
    if profile == "unusable":
        faults.append(Fault("damaged-profile", f"{kind} of mode {mode}"))
    elif profile is not None and mode != "CMYK":
        faults.append(Fault("colour-profile", f"{kind}, colours in {profile}"))
    return Looked(width, height, kind, mode, pixels, np.asarray(small), blank, tuple(faults))


def share_cut(width: int, height: int, to_height: int, to_width: int) -> float:
    """The share of a picture that a crop to these sides' ratio takes away, 0 to 1."""
    left, top, right, bottom = kept_part(width, height, to_height, to_width)
    return 1 - (right - left) * (bottom - top) / (width * height)


def _of_size(width: int, height: int, to_height: int, to_width: int) -> list[Fault]:
    """Of the size at most one thing is said: the cut part, or else what is enlarged."""
    size, to = f"{width} x {height} pixels", f"it is trained at {to_width} x {to_height}"
    enlarged = max(to_width / width, to_height / height)
    cut = share_cut(width, height, to_height, to_width)
    if enlarged > _TINY:
        return [Fault("tiny-picture", f"{size}; {to}")]
    if cut > MOST_CUT:
        return [Fault("extreme-ratio", f"{size}: {cut:.0%} is cut away")]
    if enlarged > 1:
        return [Fault("small-picture", f"{size}; {to}")]
    return []


def _of_kind(
    row: Row, source: bytes | Path, kind: str, mode: str, frames: str, transparent: bool
) -> list[Fault]:
    faults = []
    suffix = PurePosixPath(source.name if isinstance(source, Path) else row.key).suffix.lower()
    named = Image.registered_extensions().get(suffix)
    if named and named != {"MPO": "JPEG"}.get(kind, kind):  # cameras' JPEG with a second picture
        faults.append(Fault("wrong-extension", f"it is {kind}, but its name ends in {suffix}"))
    if frames != "1":
        faults.append(Fault("animated", f"{frames} frames"))
    if transparent:
        faults.append(Fault("transparent", f"{kind} of mode {mode}"))
    if mode.startswith("I") or mode == "F":
        faults.append(Fault("sixteen-bit", f"{kind} of mode {mode}"))
    elif mode in ("1", "L", "LA"):
        faults.append(Fault("grey", f"{kind} of mode {mode}"))
    elif mode == "CMYK":
        faults.append(Fault("cmyk", f"{kind} of mode {mode}"))
    return faults


def _frames(image: Image.Image) -> str:
    """How many pictures an animation has, as far as that can be told."""
    try:
        return str(getattr(image, "n_frames", 1))
    except Exception:  # Pillow looks at all of them, and answers damage with nearly any
        return "damaged"


def _is_transparent(image: Image.Image) -> bool:
    """Whether any pixel is: many files have a channel for it that is full everywhere."""
    try:
        lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    except ValueError:  # a PNG with texts after its pixels that Pillow does not take
        return True
    return int(lowest) < 255  # type: ignore[arg-type]


def _bytes(source: bytes | Path) -> bytes | Path:
    """The content, read once; where that fails the path, which `open_rgb` tries with patience."""
    if isinstance(source, bytes):
        return source
    try:
        return read_image(source)
    except (OSError, NotAnImageFile):
        return source


def _kind_of(error: ImageError) -> str:
    cause = error.__cause__
    if isinstance(error, UnsupportedFormat):
        return "unsupported-format"
    if isinstance(error, DamagedFile):
        return "damaged-file"
    if isinstance(cause, NotAnImageFile):
        return "path-refused"
    if isinstance(cause, Image.DecompressionBombError):
        return "too-many-pixels"
    if isinstance(cause, FileNotFoundError):
        return "missing-file"
    if isinstance(cause, UnidentifiedImageError):
        return "not-a-picture"
    said = str(cause).lower()
    breaks_off = ("truncated", "unexpected end", "eof", "not enough image data")
    return "truncated" if any(words in said for words in breaks_off) else "unreadable"
