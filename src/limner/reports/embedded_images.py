"""Images embedded in a page as data URLs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from limner.evaluation.splits import Split

MAX_AS_IS = 64_000  # bytes; larger images are downscaled, so the page can be sent by e-mail
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for images that are damaged, or larger than any that Limner writes."""
MOST_FILM = 3_000_000
"""Bytes; a larger film is only a file beside the page."""
SAMPLE_SIDE = 256  # pixels, longest side after downscaling

DRAWN = {"prompt": "", "seed": None, "rank": None, "right": None}
"""Defaults for the fields of a sample."""


@dataclass(frozen=True)
class EmbeddedImage:
    source: str
    """A data URL."""
    width: int
    height: int
    """Pixels, before downscaling."""


def embed_image(
    folder: Path, name: object, longest_side: int = SAMPLE_SIDE
) -> EmbeddedImage | None:
    """An image in the folder, or None if it is missing or cannot be read."""
    if not isinstance(name, str | Path) or not name:
        return None
    if Path(name).anchor or ".." in Path(name).parts:
        return None  # a page may be shared: it must not show files from elsewhere
    path = folder / name
    try:
        if not path.is_file() or path.is_symlink() or path.parent.is_symlink():
            return None
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            media = Image.MIME.get(image.format or "", "")
            if len(data) > MAX_AS_IS or not media.startswith("image/"):
                small = image.convert("RGB")
                small.thumbnail((longest_side, longest_side))
                buffer = io.BytesIO()
                small.save(buffer, format="JPEG", quality=88)
                data, media = buffer.getvalue(), "image/jpeg"
    except UNREADABLE:
        return None
    return EmbeddedImage(
        f"data:{media};base64,{base64.b64encode(data).decode('ascii')}", width, height
    )


def embed_film(data: bytes | None) -> EmbeddedImage | None:
    """An animated WebP, or None if there is none, or it is too large for a page."""
    if data is None or len(data) > MOST_FILM:
        return None
    with Image.open(io.BytesIO(data)) as film:
        width, height = film.size
    source = f"data:image/webp;base64,{base64.b64encode(data).decode('ascii')}"
    return EmbeddedImage(source, width, height)


def drawn_images(folder: Path, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Samples grouped by split; `file` and `truth`, the real image, are an `EmbeddedImage`."""
    groups = []
    for split in Split:
        shown = [
            DRAWN
            | sample
            | {key: embed_image(folder, sample.get(key)) for key in ("file", "truth")}
            for sample in samples
            if sample.get("split") == split
        ]
        if shown:
            groups.append({"heading": split.heading, "meaning": split.meaning, "samples": shown})
    return groups
