"""`limner caption`: a .txt beside each picture of a folder that has none, written by a model."""

from __future__ import annotations

import heapq
import posixpath
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from limner import console
from limner.apps.check_data.captions import faults_of
from limner.data.dataset import PictureError, Refused
from limner.data.folder_walk import FolderWalk
from limner.data.formats.folders import existing_folder
from limner.data.images import EXTENSIONS, open_rgb
from limner.data.split import sampling_rank
from limner.errors import LimnerError
from limner.files.atomic import recover_in, write_text_whole
from limner.files.folder_lock import FolderLock
from limner.memory import in_parts_that_fit

Say = Callable[[str], None]
Captions = Callable[[Sequence[Image.Image]], list[str]]
"""A caption for each picture; "" for one of which the model says nothing."""
METADATA = ("metadata.json", "metadata.jsonl", "metadata.csv")
SHORTER_SIDE = 512
"""A big JPEG is decoded at a fraction of its size, never below twice this side, pixels."""
SAY_EVERY = 15.0  # seconds


@dataclass
class Captioned:
    """What became of the pictures of a folder."""

    written: int = 0
    kept: int = 0
    """Had a caption already."""
    left: int = 0
    """Beyond `num_samples`."""
    refused: list[Refused] = field(default_factory=list)
    odd: list[tuple[str, str]] = field(default_factory=list)
    """(key, what looks wrong) of captions that were written and should be read."""


def caption_lock(folder: Path) -> FolderLock:
    """Held while a folder is captioned: of two models' captions the last would stay. Raises
    LimnerError where there is no folder."""
    return FolderLock(existing_folder(folder), "caption another folder", ".limner-caption.lock")


def pictures_to_caption(folder: Path, overwrite: bool = False) -> tuple[list[str], int]:
    """(keys of the pictures without a caption, how many have one). A .txt that holds nothing but
    white space is none. Raises LimnerError where training would not read .txt files.

    Pictures of one name (cat.jpg, cat.png) share a .txt, which is written from the first.
    """
    folder = existing_folder(folder)
    for name in METADATA:
        if (folder / name).is_file():
            raise LimnerError(
                f"{folder} has a {name}, so that training reads the captions there, and .txt files "
                f"would count for nothing. Caption a folder without {name}, or move it away."
            )
    wanted: list[str] = []
    kept, taken = 0, set()
    for directory, within, names in FolderWalk(folder):
        recover_in(directory)  # what a killed run left of its captions
        for name in names:
            path = directory / name
            if path.suffix.lower() not in EXTENSIONS:
                continue
            beside = path.with_suffix(".txt")
            if beside in taken or (not overwrite and _says_something(beside)):
                kept += 1
                continue
            taken.add(beside)
            wanted.append(posixpath.join(within, name))
    if not wanted and not kept:
        raise LimnerError(
            f"{folder} has no pictures (known: {' '.join(sorted(EXTENSIONS))}). Give the folder "
            "that they are in."
        )
    return wanted, kept


def caption_pictures(
    folder: Path,
    keys: Sequence[str],
    captions: Captions,
    batch_size: int = 8,
    num_samples: int | None = None,
    say: Say = console.say,
) -> Captioned:
    """Write a .txt for each picture, whole or not at all, so that a run that is cut off goes on.

    Where memory runs out, half as many pictures are looked at at once from there on.

    Args:
        keys: paths within `folder`.
        num_samples: at most so many, a stable choice by hash.
    """
    told = Captioned()
    if num_samples is not None and num_samples < len(keys):
        told.left = len(keys) - num_samples
        keys = sorted(heapq.nsmallest(num_samples, keys, key=sampling_rank))
    began = said = time.monotonic()
    first = 0
    with ThreadPoolExecutor() as threads:
        while first < len(keys):
            some = keys[first : first + batch_size]
            images, good = [], []
            for key, image in zip(some, threads.map(lambda k: _open(folder, k), some), strict=True):
                if isinstance(image, Refused):
                    told.refused.append(image)
                else:
                    images.append(image)
                    good.append(key)
            done = 0
            while done < len(images):
                at_once, texts = in_parts_that_fit(
                    min(batch_size, len(images) - done),
                    lambda count: (count, captions(images[done : done + count])),  # noqa: B023
                )
                if at_once < min(batch_size, len(images) - done):
                    batch_size = at_once
                    say(f"memory ran out: {batch_size} pictures at once from here on")
                for key, text in zip(good[done : done + at_once], texts, strict=True):
                    _keep(folder, key, text, told)
                done += at_once
            first += len(some)
            if (now := time.monotonic()) - said >= SAY_EVERY and first < len(keys):
                said, left = now, (now - began) / first * (len(keys) - first)
                say(f"{first:,} of {len(keys):,} pictures captioned, about {left:.0f}s left")
    return told


def _keep(folder: Path, key: str, text: str, told: Captioned) -> None:
    if not text:
        told.refused.append(Refused(key, f"{key}: the model said nothing of it"))
        return
    path = (folder / key).with_suffix(".txt")
    write_text_whole(path, text + "\n", tidy=False)
    told.written += 1
    told.odd += [(key, f"{fault.kind}: {fault.said}") for fault in faults_of(text)]


def _open(folder: Path, key: str) -> Image.Image | Refused:
    try:
        return open_rgb(folder / key, key, shorter_side=SHORTER_SIDE)
    except PictureError as error:
        return Refused(key, str(error))


def _says_something(path: Path) -> bool:
    try:
        return bool(path.read_bytes().strip())
    except FileNotFoundError:
        return False
