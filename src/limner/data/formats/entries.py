"""Validate (picture, caption) entries of a metadata file, and group them into rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from limner.data.dataset import Refused, Row
from limner.data.folder_walk import PassedOver
from limner.data.formats.encodings import is_undecoded, readings, utf_16_without_mark
from limner.data.image_paths import ImagePaths
from limner.messages import shorten

BY_HASH = (
    "Held out by a hash of the picture's path and data.train_split, so that adding pictures moves "
    "none."
)

MOST_CHARACTERS = 10_000
"""Of a caption; a longer one is a mistake, and slow to read at every pass."""


class Entry(NamedTuple):
    """One pair as it was written, unchecked."""

    place: str
    """Where it stands, for people: "metadata.json, row 3"."""
    image: Any
    text: Any
    fault: str | None = None
    """What is wrong with the row as a whole; its picture may be known all the same."""
    held_out: bool | None = None
    """Whether the data set itself holds the picture out; None: it does not say."""


@dataclass(frozen=True)
class Found:
    """What a folder or file of pictures holds.

    Attributes:
        layout: how it is written, for people.
        folder: what the rows' keys are relative to.
        held_out: who is held out, and by what rule, for people.
        notes: what people should know of the reading besides, in sentences.
        passed_over: what was not looked into.
    """

    layout: str
    folder: Path
    rows: list[Row]
    refused: list[Refused]
    held_out: str = BY_HASH
    notes: tuple[str, ...] = ()
    passed_over: PassedOver = field(default_factory=PassedOver)


def collect(
    entries: Iterable[Entry], folder: Path, allowed: Sequence[Path] = ()
) -> tuple[list[Row], list[Refused]]:
    """Checks each pair; rows in the order of first mention, a picture's captions merged.

    Args:
        allowed: folders outside of `folder` that paths may lead to.
    """
    captions: dict[str, dict[str, None]] = {}
    held_out: dict[str, bool] = {}
    refused = []
    paths = ImagePaths(folder, allowed)
    for place, image, text, fault, aside in entries:
        key, reason = paths.find(image)
        if fault:
            refused.append(Refused(place if reason else key, f"{place}: {fault}"))
            continue
        texts = text if isinstance(text, list) else [text]
        if not texts:
            reason = reason or "the list of captions is empty"
        if reason:
            refused.append(Refused(key, f"{place}: {reason}"))
            continue
        for caption in texts:
            reason = check_caption(caption)
            caption = caption if reason else caption.strip()
            if not reason and caption in captions.get(key, ()):
                reason = "the same picture and text stand in an earlier row"
            if reason:
                refused.append(Refused(key, f"{place}: {reason}"))
            else:
                captions.setdefault(key, {})[caption] = None
                if aside is not None:  # held out by any of its rows: never trained on
                    held_out[key] = aside or held_out.get(key, False)
    rows = [Row(key, tuple(texts), held_out.get(key)) for key, texts in captions.items()]
    return rows, refused


def check_caption(caption: object) -> str | None:
    """Why a caption cannot be used, or None."""
    if not isinstance(caption, str):
        return f"the caption is {shorten(caption)}, not text"
    if not caption.strip():
        return "the caption is empty"
    if len(caption) > MOST_CHARACTERS:
        return (
            f"the caption has {len(caption):,} characters, more than the maximum of "
            f"{MOST_CHARACTERS:,}; is it the right text?"
        )
    return _control_character(caption) or _not_unicode(caption)


_CONTROL = re.compile("[\0-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
"""Control characters (C0, delete, C1) that are no white space."""


def _control_character(caption: str) -> str | None:
    found = _CONTROL.search(caption)
    if found is None:
        return None
    if name := utf_16_without_mark(caption):
        return (
            "the caption is UTF-16 without a byte order mark, and full of NUL characters. Save the "
            f"file as UTF-8, or set data.encoding to {name}"
        )
    line = caption.count("\n", 0, found.start()) + 1
    called = "a NUL character" if found[0] == "\0" else f"the control character {found[0]!r}"
    return f"line {line} of the caption contains {called}: {shorten(caption)}. Remove it"


def _not_unicode(caption: str) -> str | None:
    if is_unicode(caption):
        return None
    place = next(i for i, letter in enumerate(caption) if "\ud800" <= letter <= "\udfff")
    if not all("\udc80" <= c <= "\udcff" for c in caption if "\ud800" <= c <= "\udfff"):
        # An escape of JSON's, not a byte that was not decoded.
        return "the caption is not valid Unicode (half of a surrogate pair)"
    line, byte = caption.count("\n", 0, place) + 1, ord(caption[place]) - 0xDC00
    which = readings(caption)
    asked = f", or set data.encoding: {which}" if which else ""
    return (
        f"line {line} of the caption: byte 0x{byte:02x} is not valid UTF-8. Save it as "
        f"UTF-8{asked}."
    )


def is_unicode(text: str) -> bool:
    """False for lone surrogates, which JSON escapes and file names of other encodings can hold."""
    return not is_undecoded(text)
