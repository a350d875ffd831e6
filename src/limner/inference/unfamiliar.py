"""Sizes that a model did not see in training."""

from __future__ import annotations

from limner.config import Config

LARGER, SMALLER = 1.25, 2 / 3
"""A side is near a trained one between these factors. An emoji model of 128 pixels draws most of
its emoji well at 112 to 160, with some small parts twice, and rougher at 96; at 192 many are
doubled and edges are ragged, at 256 all of them, and at 64 hardly anything can be recognised."""
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

    Positions are computed for any size, so that the composition stays the same; but a patch shows
    as many pixels as ever, so that what is to be larger is repeated: eyes, edges, stems.
    """
    trained = trained_sizes(config)
    factors = [(height / h, width / w) for h, w in trained]
    if any(min(each) >= SMALLER and max(each) <= LARGER for each in factors):
        return None
    sizes = [f"{w} x {h}" for h, w in trained[:SHOWN]]
    if len(trained) > SHOWN:
        sizes.append(f"{len(trained) - SHOWN} more")
    said = f"{width} x {height} pixels are far from what this model was trained at "
    said += f"({', '.join(sizes)})"
    if min(max(each) for each in factors) <= LARGER:
        return f"{said}: it may be a blur; draw at a trained size and scale the picture down"
    said += ": small parts may be repeated, up to a pattern; draw at a trained size"
    if height * width <= LARGER**2 * max(h * w for h, w in trained):
        return f"{said}, or train on pictures of such shapes (data.buckets=auto)"
    return (
        f"{said} and upscale the picture with another program, or train with a larger --size "
        "(data.image_size)"
    )
