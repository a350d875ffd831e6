"""The pictures of a page, whose bytes it carries."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from limner.evaluation.splits import Split

MAX_AS_IS = 64_000  # bytes; larger pictures are shrunk, so that the page can be sent by mail
SAMPLE_SIDE = 256  # pixels, longest side after shrinking

DRAWN = {"prompt": "", "seed": None, "rank": None, "right": None}
"""What is said of a drawn picture, where nothing is."""


@dataclass(frozen=True)
class EmbeddedImage:
    source: str
    """A data URL."""
    width: int
    height: int
    """Pixels, as it was before it was shrunk."""


def embed_image(
    folder: Path, name: object, longest_side: int = SAMPLE_SIDE
) -> EmbeddedImage | None:
    """A picture in the folder, or None if there is no such picture in it."""
    if not isinstance(name, str | Path) or not name:
        return None
    if Path(name).anchor or ".." in Path(name).parts:
        return None  # a page that is sent to others shows nothing from elsewhere
    try:
        data = (folder / name).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            media = Image.MIME.get(image.format or "", "")
            if len(data) > MAX_AS_IS or not media.startswith("image/"):
                small = image.convert("RGB")
                small.thumbnail((longest_side, longest_side))
                buffer = io.BytesIO()
                small.save(buffer, format="JPEG", quality=88)
                data, media = buffer.getvalue(), "image/jpeg"
    except (OSError, ValueError):
        return None
    return EmbeddedImage(
        f"data:{media};base64,{base64.b64encode(data).decode('ascii')}", width, height
    )


def drawn_images(folder: Path, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a model drew, split by split; `file` and `truth`, the real one, are an
    `EmbeddedImage`."""
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
