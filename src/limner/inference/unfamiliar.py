"""Sizes that a model did not see in training."""

from __future__ import annotations

from limner.config import Config

FAR = 1.5
"""A picture whose sides are within this factor of a trained size's is drawn as a whole."""
SHOWN = 3


def trained_sizes(config: Config) -> list[tuple[int, int]]:
    """(height, width) in pixels of the training pictures."""
    data = config.data
    if isinstance(data.buckets, tuple):
        return [(int(height), int(width)) for height, width in data.buckets]
    return [(data.image_size, data.image_size)]


def far_in_words(height: int, width: int, config: Config) -> str | None:
    """A sentence about a size that is far from all trained ones, and what to do instead; None: it
    is near one.

    Positions are computed for any size, but those outside the trained picture, and how far apart
    two of its parts may be, were never seen: objects are repeated rather than enlarged.
    """
    trained = trained_sizes(config)
    if any(max(height / h, h / height, width / w, w / width) <= FAR for h, w in trained):
        return None
    sizes = [f"{w} x {h}" for h, w in trained[:SHOWN]]
    if len(trained) > SHOWN:
        sizes.append(f"{len(trained) - SHOWN} more")
    said = f"{width} x {height} pixels are far from what this model was trained at "
    said += f"({', '.join(sizes)})"
    if max(height / max(h for h, _ in trained), width / max(w for _, w in trained)) <= FAR:
        return f"{said}: it may draw only a blur; draw at a trained size and scale the picture down"
    said += ": it may draw one thing several times, or a pattern; draw at a trained size"
    if height * width <= FAR * max(h * w for h, w in trained):
        return f"{said}, or train on pictures of such shapes (data.buckets=auto)"
    return (
        f"{said} and upscale the picture with another program, or train with a larger --size "
        "(data.image_size)"
    )
