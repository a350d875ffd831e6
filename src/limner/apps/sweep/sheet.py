"""A sweep for people: the line of a measurement, the table, and the same prompts at each cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from limner.apps.sweep.measurement import Measurement
from limner.apps.sweep.score import Quality
from limner.config import SamplingConfig
from limner.inference.contact_sheet import contact_sheet, save_contact_sheet
from limner.inference.sampling_settings import in_words

SHOWN = 8
"""Prompts on the sheet."""


def numbers(found: Measurement | None) -> tuple[str, str]:
    """Kernel distance and share that is right, as they stand in tables."""
    distance = found.distance if found is not None else None
    right = found.right if found is not None else None
    return (
        "-" if distance is None else f"{distance:.4f}",
        "-" if right is None else f"{right:.1%}",
    )


def progress(found: Measurement, seconds: float | None) -> str:
    """The line of one measurement; `seconds` None: it was known."""
    distance, right = numbers(found)
    took = "known" if seconds is None else f"{seconds:.1f} s"
    return (
        f"{found.cost:3d} evaluations | {found.count:3d} pictures | distance {distance} | "
        f"right {right} | {took} | {in_words(found.sampling)}"
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side; the first row is the head. Numbers stand right, words left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if 0 < i < len(row) - 1 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def save_sheet(
    path: Path, quality: Quality, settings: Sequence[tuple[str, SamplingConfig]], title: str
) -> None:
    """The first prompts of a part, from the same noise, at each of the named settings.

    The real pictures stand on top.
    """
    asked = quality.part.asked[:SHOWN]
    count = len(asked)
    images = [Image.fromarray(d.truth) for d in asked if d.truth is not None]
    groups = ["real"] * count
    for name, sampling in settings:
        drawn = quality.drawings(sampling, 0, count)
        images += [d.image for d in drawn if d.image is not None]
        groups += [f"{name}: {in_words(sampling)}"] * count
    labels = [d.prompt for d in asked] * (1 + len(settings))
    sheet = contact_sheet(images, labels, columns=count, title=title, groups=groups)
    save_contact_sheet(sheet, path, labels)
