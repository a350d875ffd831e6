"""Output of a sweep: progress lines, the table, and the contact sheet."""

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
    """Kernel distance and the fraction that is correct, formatted for tables."""
    distance = found.distance if found is not None else None
    right = found.right if found is not None else None
    return (
        "-" if distance is None else f"{distance:.4f}",
        "-" if right is None else f"{right:.1%}",
    )


def progress(found: Measurement, seconds: float | None) -> str:
    """The line of one measurement; `seconds` is None if it was already known."""
    distance, right = numbers(found)
    took = "known" if seconds is None else f"{seconds:.1f} s"
    return (
        f"{found.cost:3d} evaluations | {found.count:3d} images | distance {distance} | "
        f"correct {right} | {took} | {in_words(found.sampling)}"
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """A text table with the first row as header; numbers are right-aligned, text left-aligned."""
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
    """Save a contact sheet of the first prompts of a part with each setting, from the same noise.

    The first row shows the real images.
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
