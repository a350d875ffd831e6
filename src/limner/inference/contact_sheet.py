"""Contact sheets: a grid of generated pictures, labelled with their prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, PngImagePlugin

from limner.errors import LimnerError
from limner.files.atomic import replacing
from limner.inference.fonts import Font, font_for, in_ascii, say_once_what_is_missing

MARGIN = 24  # pixels around the sheet
GAP = 16  # pixels between neighbouring cells
TEXT_GAP = 5  # pixels between a picture and its label
LABEL_SIZE = 12  # font sizes in pixels
SMALL_SIZE = 10
HEADING_SIZE = 16
TITLE_SIZE = 22
MAX_LABEL_LINES = 6

INK, SOFT_INK, FRAME = (28, 28, 30), (110, 110, 118), (222, 222, 226)


def contact_sheet(
    images: Sequence[Image.Image],
    labels: Sequence[str],
    columns: int | None = None,
    title: str | None = None,
    scale_to: int = 96,
    truths: Sequence[Image.Image | None] | None = None,
    groups: Sequence[str] | None = None,
) -> Image.Image:
    """Draw `images` in rows on white, each with its label underneath; returns an RGB picture.

    `scale_to` is the side in pixels at which each picture is shown. `truths[i]`, where given, is
    the real picture for `labels[i]`, drawn at half that size to the right and marked "real".
    `groups[i]` is the heading that picture i stands under; neighbours with one heading share it.
    A label that no font of this machine can draw becomes "#i", its place in `labels` from 0 (in a
    run folder that is its place in samples.json), and a warning says what to install. Raises
    LimnerError if the lengths differ.
    """
    for name, others in (("labels", labels), ("truths", truths), ("groups", groups)):
        if others is not None and len(others) != len(images):
            raise LimnerError(
                f"contact_sheet: {len(images)} pictures but {len(others)} {name}; there must be "
                "one for each."
            )
    truth_size = scale_to // 2
    has_truths = truths is not None and any(truth is not None for truth in truths)
    cell_width = scale_to + (truth_size + TEXT_GAP if has_truths else 0)
    columns = columns or default_columns(len(images), cell_width)
    width = 2 * MARGIN + columns * cell_width + (columns - 1) * GAP

    texts = [label_text(label, i, LABEL_SIZE, cell_width) for i, label in enumerate(labels)]
    say_once_what_is_missing(labels, LABEL_SIZE)
    label_line = line_height(font_for("Ag", LABEL_SIZE))
    # Lay out first (where everything goes, how high the sheet is), then paint.
    headings: list[tuple[int, int, list[str], Font]] = []
    corners: list[tuple[int, int]] = []
    y = MARGIN
    for text, size in ((title, TITLE_SIZE),) if title else ():
        lines, font = label_text(text, 0, size, width - 2 * MARGIN)
        headings.append((MARGIN, y, lines, font))
        y += len(lines) * line_height(font) + GAP
    for heading, members in groupby(range(len(images)), key=lambda i: groups[i] if groups else ""):
        if heading:
            lines, font = label_text(heading, 0, HEADING_SIZE, width - 2 * MARGIN)
            headings.append((MARGIN, y, lines, font))
            y += len(lines) * line_height(font) + GAP // 2
        group = list(members)
        for start in range(0, len(group), columns):
            row = group[start : start + columns]
            corners += [(MARGIN + k * (cell_width + GAP), y) for k in range(len(row))]
            most_lines = max(len(texts[i][0]) for i in row)
            y += scale_to + TEXT_GAP + most_lines * label_line + GAP
    sheet = Image.new("RGB", (width, max(y - GAP, MARGIN) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)

    for x, top, lines, font in headings:
        draw_lines(draw, (x, top), lines, font, INK)
    for i, (x, top) in enumerate(corners):
        paste_framed(sheet, draw, images[i], (x, top), scale_to)
        lines, font = texts[i]
        draw_lines(draw, (x, top + scale_to + TEXT_GAP), lines, font, INK)
        truth = truths[i] if truths is not None else None
        if truth is not None:
            side = x + scale_to + TEXT_GAP
            paste_framed(sheet, draw, truth, (side, top), truth_size)
            small = font_for("real", SMALL_SIZE)
            draw_lines(draw, (side, top + truth_size + 2), ["real"], small, SOFT_INK)
    return sheet


def save_contact_sheet(sheet: Image.Image, path: Path, labels: Sequence[str]) -> None:
    """Save as PNG with the prompts, in any script, in its text metadata ("prompts")."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "Limner")
    prompts = json.dumps(list(labels), ensure_ascii=False)
    info.add_itxt("prompts", prompts.encode("utf-8", "replace").decode())  # lone surrogates
    with replacing(path, durable=False) as staging:
        sheet.save(staging, format="PNG", pnginfo=info, optimize=True)


def in_fewer_columns(sheet: Image.Image, columns: int, scale_to: int = 96) -> Image.Image | None:
    """A sheet of `contact_sheet` for a narrow screen: its columns in groups, one below the other.

    Args:
        sheet: drawn with this `scale_to`, and without truths.

    Returns:
        None: it has no more columns than that, or is no such sheet.
    """
    step = scale_to + GAP
    count, rest = divmod(sheet.width - 2 * MARGIN + GAP, step)
    if rest or count <= columns:
        return None
    width = 2 * MARGIN + columns * step - GAP
    height = sheet.height - MARGIN
    groups = range(0, count, columns)
    narrow = Image.new("RGB", (width, height * len(groups) + MARGIN), "white")
    for k, first in enumerate(groups):
        left = MARGIN + first * step
        right = min(left + columns * step - GAP, sheet.width - MARGIN)
        # The hairline frames lie one pixel outside.
        part = sheet.crop((left - 1, 0, right + 1, sheet.height))
        narrow.paste(part, (MARGIN - 1, k * height))
    return narrow


def default_columns(count: int, cell_width: int) -> int:
    """As many as fit a sheet of about 1,000 pixels, and no more than there are pictures."""
    return max(1, min(count, 1000 // (cell_width + GAP)))


def paste_framed(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    image: Image.Image,
    corner: tuple[int, int],
    size: int,
) -> None:
    """Fit `image` into a square of `size` at `corner`, with a hairline frame around it.

    The frame lies outside the picture and marks its edge, which a white or slightly grey background
    would hide on the white sheet.
    """
    shown = fit(image, size)
    x, y = corner[0] + (size - shown.width) // 2, corner[1] + (size - shown.height) // 2
    sheet.paste(shown, (x, y))
    draw.rectangle((x - 1, y - 1, x + shown.width, y + shown.height), outline=FRAME)


def fit(image: Image.Image, size: int) -> Image.Image:
    """`image` as RGB with its longer side `size`; transparency over white."""
    if image.mode in ("RGBA", "LA", "P", "PA"):
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    image = image.convert("RGB")
    longer = max(image.size)
    width, height = (max(1, round(side * size / longer)) for side in image.size)
    # Smooth, so that a 32-pixel picture at three times its size does not look like squares.
    return image.resize((width, height), Image.Resampling.BICUBIC)


# ---- text --------------------------------------------------------------------------------------


def label_text(label: str, number: int, size: int, width: int) -> tuple[list[str], Font]:
    """Lines of at most `width` pixels for `label`, and the font that can draw them."""
    text = " ".join(label.split()) or "(empty prompt)"
    for candidate in (text, in_ascii(text), f"#{number}"):
        font = font_for(candidate, size)
        if font is not None:
            return wrap(candidate, font, width), font
    raise AssertionError("Pillow's own font draws ASCII")


def wrap(text: str, font: Font, width: int) -> list[str]:
    """Breaks at spaces, inside a word only where it alone is too wide (or has no spaces at all)."""
    lines = [""]
    for word in text.split():
        candidate = f"{lines[-1]} {word}".strip()
        if font.getlength(candidate) <= width:
            lines[-1] = candidate
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
        if len(lines) > MAX_LABEL_LINES:
            break
    if len(lines) > MAX_LABEL_LINES:
        last = lines[MAX_LABEL_LINES - 1]
        while last and font.getlength(last + "...") > width:
            last = last[:-1]
        lines = [*lines[: MAX_LABEL_LINES - 1], last.rstrip() + "..."]
    return lines


def line_height(font: Font | None) -> int:
    """Pixels from one line to the next."""
    if font is None:
        return LABEL_SIZE + 4
    ascent, descent = font.getmetrics()
    return ascent + descent + 1


def draw_lines(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    lines: list[str],
    font: Font | None,
    colour: tuple[int, int, int],
) -> None:
    x, y = corner
    for line in lines:
        draw.text((x, y), line, font=font, fill=colour)
        y += line_height(font)
