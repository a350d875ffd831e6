"""Colour management: convert pictures with a colour profile to sRGB.

Phones save Display P3, cameras Adobe RGB, printers CMYK. The numbers of such a file, read as sRGB,
are other colours: those of a phone too pale, those of print wrong throughout.

The conversion is relative colorimetric with black point compensation, as photo programs have it:
colours that sRGB has stay what they are, white paper is white (on which transparent pictures are
laid) and black is black. Profiles of three primaries have no other conversion; those of printers
do ("perceptual"), and each maker's is another one.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

ALIKE = 1
"""Levels of 256 by which a profile may differ from sRGB, and its pictures be left as they are."""
MAX_PROFILE = 2**22  # bytes
_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_GREY = ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I;16N", "I")
_FITTING = {
    "RGB": ("RGB", "RGBA", "RGBX", "P", "PA", "YCbCr", *_GREY),
    "L": _GREY,
    "CMYK": ("CMYK",),
}
"""Modes of pictures for which a profile of each space can be used. Many programs leave one of three
primaries in a grey picture: it then tells how light its levels are."""


class Unusable:
    """How many pictures had a profile that cannot be used, since somebody asked."""

    def __init__(self) -> None:
        self.lock, self.count = threading.Lock(), 0

    def add(self) -> None:
        with self.lock:
            self.count += 1

    def take(self) -> int:
        with self.lock:
            count, self.count = self.count, 0
        return count


UNUSABLE = Unusable()


def conversion(image: Image.Image) -> Callable[[Image.Image], Image.Image] | None:
    """What makes the picture's colours sRGB: from one of its mode, or opaque parts of it, to RGB.

    None where it has no profile, or one as good as sRGB, or one that cannot be used (which is
    counted in UNUSABLE): its colours are then taken as sRGB.
    """
    found = _found(image)
    if found is None or found[1] is None:
        if found is None and "icc_profile" in image.info:
            UNUSABLE.add()
        return None
    mode, transform = found
    return lambda part: _applied(part if part.mode == mode else part.convert(mode), transform)


def profile_of(image: Image.Image) -> str | None:
    """What is known of a picture's profile, for people: its name, or "unusable" where it cannot be
    used; None where there is none, or one as good as sRGB."""
    if "icc_profile" not in image.info:
        return None
    if (found := _found(image)) is None:
        return "unusable"
    return None if found[1] is None else _name(bytes(image.info["icc_profile"]))


def _found(image: Image.Image) -> tuple[str, Any] | None:
    """(the mode that the profile is for, the transform or None); None: no profile to be used."""
    profile = image.info.get("icc_profile")
    if not profile:  # None where there was one that Pillow found damaged
        return None
    try:
        mode, transform = _transform(bytes(profile))
    except ValueError:
        return None
    return (mode, transform) if image.mode in _FITTING[mode] else None


def from_lab(image: Image.Image) -> Image.Image:
    """A picture in the colours CIE L*a*b* as RGB, which Pillow's `convert` does not do."""
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return _applied(image, _built(ImageCms.ImageCmsProfile(lab), srgb, "LAB", "RGB"))


def _applied(image: Image.Image, transform: Any) -> Image.Image:
    from PIL import ImageCms

    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # it is where the image itself is changed
    return converted


@lru_cache(maxsize=64)
def _transform(profile: bytes) -> tuple[str, Any]:
    """(the mode of pictures that a profile is for, how they become sRGB); None where they are as
    good as that already. Raises ValueError if the profile cannot be used."""
    if len(profile) > MAX_PROFILE:
        raise ValueError("too large")
    try:
        from PIL import ImageCms

        opened = ImageCms.getOpenProfile(io.BytesIO(profile))
        mode = _SPACES[opened.profile.xcolor_space]
        transform = _built(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
        grid = _grid(mode)
        seen = np.asarray(_applied(grid, transform)).astype(int)
    except Exception as error:  # littleCMS answers damaged profiles with nearly any
        raise ValueError(str(error)) from None
    if mode == "CMYK":
        return mode, transform
    apart = np.abs(seen - np.asarray(grid.convert("RGB"))).max()
    return mode, None if apart <= ALIKE else transform


def _built(profile: Any, srgb: Any, mode: str, to: str) -> Any:
    from PIL import ImageCms

    return ImageCms.buildTransform(
        profile,
        srgb,
        mode,
        to,
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


def _grid(mode: str) -> Image.Image:
    """A picture of colours all over the space."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    channels = np.meshgrid(*[steps] * len(mode), indexing="ij")
    colours = np.stack(channels, axis=-1).reshape(1, -1, len(mode))
    return Image.frombytes(mode, (colours.shape[1], 1), colours.tobytes())


def _name(profile: bytes) -> str:
    from PIL import ImageCms

    try:
        name = ImageCms.getProfileDescription(ImageCms.getOpenProfile(io.BytesIO(profile)))
    except Exception:  # it has none, or one that is damaged
        name = ""
    return " ".join("".join(c for c in name if c.isprintable()).split())[:60] or "without a name"
