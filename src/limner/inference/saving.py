"""A drawing keeps how it was made, so that it can be drawn again from the file alone."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from limner import __version__

KEY = "limner"
"""Of `picture.info`, and of the text in a PNG: prompt, seed, and settings as JSON."""


def remember(picture: Image.Image, how: dict[str, Any]) -> Image.Image:
    """The picture, with what is not None of `how` in its `info`."""
    known = {key: value for key, value in how.items() if value is not None}
    picture.info[KEY] = json.dumps({"limner_version": __version__, **known}, ensure_ascii=False)
    return picture


def how_drawn(picture: Image.Image) -> dict[str, Any]:
    """What a drawing, or the PNG of one, says about itself; {}: nothing."""
    try:
        found = json.loads(picture.info.get(KEY, "{}"))
    except (ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def save_picture(picture: Image.Image, to: Path | BytesIO, format: str | None = None) -> None:
    """Write it; a PNG holds in its text (iTXt `limner`) how it was drawn. Raises OSError.

    Args:
        format: of Pillow's, such as "PNG"; None: that of the file's name.
    """
    info = PngImagePlugin.PngInfo()
    if KEY in picture.info:
        info.add_itxt(KEY, picture.info[KEY])
    kind = format or Image.registered_extensions()[Path(str(to)).suffix.lower()]
    picture.save(to, format=kind, **({"pnginfo": info} if kind == "PNG" else {}))
