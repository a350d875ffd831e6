"""The film of a run: its previews, one after the other, as an animated WebP."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from limner.reports.embedded_images import UNREADABLE
from limner.reports.run_folder import evenly

FRAMES = 60
"""The most frames; of more previews an even selection is shown."""
SIDE = 1000
"""Pixels, the longest side of a frame."""
MILLISECONDS = 400
"""Time of a frame; of many frames less, so that the whole takes `LONGEST` at most."""
LONGEST = 12_000
LAST = 2500
"""Time of the last frame, in milliseconds, before the film begins anew."""
BAR = 6
"""Height in pixels of the bar below a frame, which shows how much of the run has passed."""
BAR_COLOURS = (228, 228, 224), (33, 112, 199)


def film_of(previews: Sequence[tuple[int, Path]]) -> bytes | None:
    """An animated WebP of previews, with a bar below that grows with the steps.

    Args:
        previews: (step, file), in order. Files that cannot be read are left out.

    Returns:
        None: fewer than two of them can be read.
    """
    chosen = evenly(list(previews), FRAMES)
    last = max((step for step, _ in chosen), default=0)
    frames: list[Image.Image] = []
    for step, path in chosen:
        try:
            with Image.open(path) as image:
                frame = image.convert("RGB")
        except UNREADABLE:
            continue
        frame.thumbnail((SIDE, SIDE))
        if frames and frame.size != (frames[0].width, frames[0].height - BAR):
            frame = frame.resize((frames[0].width, frames[0].height - BAR))
        frames.append(with_bar(frame, step / last if last else 1.0))
    if len(frames) < 2:
        return None
    each = max(60, min(MILLISECONDS, LONGEST // len(frames)))
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        format="WEBP",
        save_all=True,
        append_images=frames[1:],
        duration=[each] * (len(frames) - 1) + [LAST],
        loop=0,
        quality=80,
        method=2,
    )
    return buffer.getvalue()


def with_bar(frame: Image.Image, share: float) -> Image.Image:
    """The frame with a bar below it of which this share, 0 to 1, is filled."""
    rest, done = BAR_COLOURS
    whole = Image.new("RGB", (frame.width, frame.height + BAR), rest)
    whole.paste(frame, (0, 0))
    filled = round(frame.width * min(max(share, 0.0), 1.0))
    if filled:
        bar = (0, frame.height, filled - 1, whole.height - 1)
        ImageDraw.Draw(whole).rectangle(bar, fill=done)
    return whole
