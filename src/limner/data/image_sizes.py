"""Picture sizes, read from the file headers and cached between runs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from limner.data.dataset import ImageDataset, ImageError, Row
from limner.data.images import upright_size
from limner.data.verify import SAVE_EVERY, signature_of
from limner.files.fingerprints import DIGEST, load_array, save_array

ENTRY = np.dtype([("file", f"V{DIGEST}"), ("height", "<i4"), ("width", "<i4")])
REMEMBERED_FROM = 1000
"""Rows; fewer are read in no time, and leave no trace."""
BUILT_IN = ("emoji", "shapes")
"""Sets whose pictures are drawn at any size, and are square."""


def shapes_of(dataset: ImageDataset, rows: Sequence[Row], folder: Path | None) -> np.ndarray:
    """Height and width of each row's picture, upright: int32 [N, 2].

    One whose header cannot be read counts as a square: decoding it says what is wrong.

    Args:
        folder: where they are remembered by path, size, and time of change; None: nowhere.
    """
    shapes = np.ones((len(rows), 2), dtype=np.int32)
    if dataset.name in BUILT_IN:
        return shapes
    path = folder / "shapes.npy" if folder and len(rows) >= REMEMBERED_FROM else None
    known = _read(path)
    new: dict[bytes, tuple[int, int]] = {}

    def look(row: Row) -> tuple[int, int] | None:
        signature, calm = signature_of(dataset, row) if path else (None, False)
        if signature and (found := known.get(signature)):
            return found
        try:
            shape = upright_size(dataset.image(row))
        except ImageError:
            return None
        if shape and signature and calm:
            new[signature] = shape
        return shape

    def save() -> None:
        if path and new:
            known.update(dict(new))  # a copy: threads add to it
            _write(path, known)

    saved = time.monotonic()
    try:
        with ThreadPoolExecutor(8) as threads:  # reading waits for the disk
            for number, shape in enumerate(threads.map(look, rows)):
                if shape and min(shape) > 0:
                    shapes[number] = shape
                if time.monotonic() - saved >= SAVE_EVERY:
                    save()
                    saved = time.monotonic()
    finally:  # also of what was interrupted
        save()
    return shapes


def _read(path: Path | None) -> dict[bytes, tuple[int, int]]:
    known = load_array(path) if path is not None else None
    if known is None or known.dtype != ENTRY or known.ndim != 1:
        return {}
    return {bytes(e["file"]): (int(e["height"]), int(e["width"])) for e in known}


def _write(path: Path, known: dict[bytes, tuple[int, int]]) -> None:
    entries = np.array([(np.void(f), h, w) for f, (h, w) in known.items()], dtype=ENTRY)
    with contextlib.suppress(OSError):  # it is then read again the next time
        save_array(path, entries)
