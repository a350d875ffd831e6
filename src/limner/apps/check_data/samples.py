"""The pictures that the page shows: what the model will see of some rows, and rows alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from limner.data.dataset import ImageDataset, ImageError, Row
from limner.data.images import kept_part, open_rgb
from limner.data.order import seeded_generator

SAMPLES, PAIRS = 12, 8
SIDE = 256
"""Longest side of a picture on the page, pixels."""
_SHADE, _EDGE = (90, 90, 96), (214, 60, 60)
FOLDER = "pictures"
OURS = re.compile(r"\d{2,}-(whole\.jpg|seen\.png)|alike-\d{2,}-[ab]\.png")
"""What pictures are called there."""
ALIKE = ("split-leak", "near-split-leak", "conflicting-captions", "near-duplicate", "duplicate")


def show_samples(
    dataset: ImageDataset,
    good: Sequence[int],
    size_of: Callable[[int], tuple[int, int]],
    seed: int,
    output: Path,
) -> list[dict[str, Any]]:
    """Some decodable rows, chosen by the seed: the original with what is cut away in grey, and
    what is trained.

    Args:
        output: where they are written, the folder that will be FOLDER of the check's.
        size_of: (height, width) at which a row is trained.
    """
    import torch

    generator = seeded_generator(seed, "check")
    chosen = torch.randperm(len(good), generator=generator)[:SAMPLES].tolist()
    told = []
    for number, place in enumerate(sorted(chosen)):
        row = dataset.rows[good[place]]
        size = size_of(good[place])
        try:
            whole = open_rgb(dataset.image(row), row.key, shorter_side=SIDE)
            seen = Image.fromarray(dataset.load(row, size))
        except ImageError:  # changed since it was looked at
            continue
        names = f"{number:02d}-whole.jpg", f"{number:02d}-seen.png"
        cut_shown(whole, *size).save(output / names[0], quality=88)
        if max(seen.size) > SIDE:
            seen.thumbnail((SIDE, SIDE))
        seen.save(output / names[1])
        told.append(
            {
                "key": row.key,
                "captions": list(row.captions),
                "whole": f"{FOLDER}/{names[0]}",
                "seen": f"{FOLDER}/{names[1]}",
            }
        )
    return told


def cut_shown(whole: Image.Image, to_height: int, to_width: int) -> Image.Image:
    """The picture, at most SIDE pixels long, with what the crop takes away greyed out."""
    small = whole.copy()
    small.thumbnail((SIDE, SIDE))
    box = kept_part(small.width, small.height, to_height, to_width)
    left, top, right, bottom = (round(edge) for edge in box)
    right, bottom = max(right, left + 1), max(bottom, top + 1)  # of a very long and thin one
    if right - left >= small.width and bottom - top >= small.height:
        return small
    shaded = Image.blend(small, Image.new("RGB", small.size, _SHADE), 0.75)
    shaded.paste(small.crop((left, top, right, bottom)), (left, top))
    ImageDraw.Draw(shaded).rectangle((left, top, right - 1, bottom - 1), outline=_EDGE, width=2)
    return shaded


def show_duplicates(
    dataset: ImageDataset, which: Sequence[int], findings: list[dict[str, Any]], output: Path
) -> list[dict[str, Any]]:
    """The first pairs of rows that are alike, the worst kind first, side by side."""
    pairs = [
        (kind, first)
        for kind in ALIKE
        for finding in findings
        if finding["kind"] == kind
        for first in finding["first"][:PAIRS]
    ][:PAIRS]
    wanted = {key for _, pair in pairs for key in (pair["key"], pair["other"])}
    rows: dict[str, Row] = {}
    for i in which if wanted else ():
        row = dataset.rows[i]
        if row.key in wanted:
            rows[row.key] = row
    told = []
    for number, (kind, pair) in enumerate(pairs):
        both = [rows[pair[name]] for name in ("key", "other")]
        names = [f"alike-{number:02d}-{side}.png" for side in "ab"]
        try:
            for row, name in zip(both, names, strict=True):
                Image.fromarray(dataset.load(row, SIDE // 2)).save(output / name)
        except ImageError:
            continue
        told.append(
            {
                "kind": kind,
                "keys": [row.key for row in both],
                "captions": [row.captions[0] for row in both],
                "files": [f"{FOLDER}/{name}" for name in names],
            }
        )
    return told
