"""`limner caption`: a .txt beside each picture of a folder that has none, written by a model."""

from __future__ import annotations

import heapq
import logging
import os
import posixpath
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from limner.apps.check_data.captions import faults_of
from limner.console import progress_lines
from limner.data.dataset import ImageError, Refused
from limner.data.folder_walk import FolderWalk, caption_files, composed
from limner.data.formats.columns import Columns
from limner.data.formats.detect import METADATA, recognise, table_in
from limner.data.formats.text_files import existing_folder
from limner.data.images import EXTENSIONS, open_rgb
from limner.data.regular_files import MAX_CAPTION_BYTES, why_not_regular
from limner.data.split import sampling_rank
from limner.errors import LimnerError
from limner.files.atomic import recover_in, write_text_whole
from limner.files.folder_lock import FolderLock
from limner.memory import in_parts_that_fit
from limner.messages import shorten_name

log = logging.getLogger(__name__)

Captions = Callable[[Sequence[Image.Image]], list[str]]
"""A caption for each picture; "" for one of which the model says nothing."""
SHORTER_SIDE = 512
"""A big JPEG is decoded at a fraction of its size, never below twice this side, pixels."""


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


def images_to_caption(folder: Path, overwrite: bool = False) -> tuple[list[str], int]:
    """(keys of the pictures without a caption, how many have one). A .txt that holds nothing but
    white space is none. Raises LimnerError where training would not read .txt files.

    Pictures of one name (cat.jpg, cat.png) share a .txt, which is written from the first.
    """
    folder = existing_folder(folder)
    if elsewhere := _captions_elsewhere(folder):
        raise LimnerError(
            f"{folder} has {elsewhere}, so training reads the captions from there and ignores .txt "
            "files. Caption a folder without it, or move it away."
        )
    wanted: list[str] = []
    kept, taken = 0, set()
    found = _Texts(folder)
    for directory, within, names in FolderWalk(folder):
        recover_in(directory)  # what a killed run left of its captions
        for name in names:
            if Path(name).suffix.lower() not in EXTENSIONS:
                continue
            beside = found.beside(posixpath.join(within, name))
            if beside in taken or (not overwrite and _says_something(beside)):
                kept += 1
                continue
            taken.add(beside)
            wanted.append(posixpath.join(within, name))
    if not wanted and not kept:
        raise LimnerError(
            f"{folder} has no pictures (supported: {' '.join(sorted(EXTENSIONS))}). Use the folder "
            "that contains them."
        )
    return wanted, kept


def _captions_elsewhere(folder: Path) -> str | None:
    """What training would read in place of .txt files beside the pictures, for people."""
    if name := next((name for name in METADATA if (folder / name).is_file()), None):
        return f"a {name}"
    try:
        kind = recognise(folder, Columns())
        table = table_in(folder, Columns()) if kind == "table" else None
    except LimnerError:  # of no known layout, as folders without captions are
        return None
    if table is not None:
        # A list in a .json gives way to the first .txt.
        return None if table.suffix.lower() == ".json" else f"a table of captions, {table.name}"
    return None if kind in ("folder", "classes") else f"a data set of the format {kind}"


def caption_images(
    folder: Path,
    keys: Sequence[str],
    captions: Captions,
    batch_size: int = 8,
    num_samples: int | None = None,
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
    progress = progress_lines(log, "pictures captioned")
    first, texts_beside = 0, _Texts(folder)
    with ThreadPoolExecutor() as threads:
        while first < len(keys):
            some = keys[first : first + batch_size]
            images, good = [], []
            opened = threads.map(lambda key: _open(texts_beside, key), some)
            for key, image in zip(some, opened, strict=True):
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
                    log.info(f"out of memory; the batch size is now {batch_size}")
                for key, text in zip(good[done : done + at_once], texts, strict=True):
                    _keep(texts_beside.beside(key), key, text, told)
                done += at_once
            first += len(some)
            progress(first, len(keys))
    return told


def _keep(path: Path, key: str, text: str, told: Captioned) -> None:
    if not text:
        told.refused.append(Refused(key, f"{key}: the model returned an empty caption"))
        return
    write_text_whole(path, text + "\n", tidy=False)
    told.written += 1
    told.odd += [(key, f"{fault.kind}: {fault.said}") for fault in faults_of(text)]


def _open(texts: _Texts, key: str) -> Image.Image | Refused:
    if reason := texts.why_not_written(key):
        return Refused(key, f"{key}: {reason}")
    try:
        return open_rgb(texts.folder / key, key, shorter_side=SHORTER_SIDE)
    except ImageError as error:
        return Refused(key, str(error))


class _Texts:
    """The .txt or .caption of each picture, found as training finds it: in capitals, too, and in
    whichever way a system spells `é`. Else the model's words would count, and not those that are
    there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._in: dict[str, dict[str, str]] = {}

    def beside(self, key: str) -> Path:
        """Where a picture's caption is, or would be written."""
        within, name = posixpath.split(key)
        if within not in self._in:
            self._in[within] = caption_files(sorted(os.listdir(self.folder / within)))
        stem = os.path.splitext(name)[0]
        return self.folder / within / self._in[within].get(composed(stem), f"{stem}.txt")

    def why_not_written(self, key: str) -> str | None:
        """A data set of somebody else's may have links and pipes in the place of a caption."""
        path = self.beside(key)
        name = shorten_name(path.name)
        if path.is_symlink():
            target = Path(os.path.realpath(path))
            own = (os.path.realpath(self.folder), os.path.realpath(path.parent))
            if not any(target.is_relative_to(folder) for folder in own):
                return (
                    f"{name} is a link that leads out of the folder, to "
                    f"{shorten_name(str(target))}, where its caption would be written; remove it"
                )
        try:
            reason = why_not_regular(path, MAX_CAPTION_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            reason = error.strerror or str(error)
        return f"{name} is not written: {reason}" if reason else None


def _says_something(path: Path) -> bool:
    try:
        if why_not_regular(path, MAX_CAPTION_BYTES):
            return path.is_file()  # of a size that is not read, but no place for a caption either
        return bool(path.read_bytes().strip())
    except FileNotFoundError:
        return False
    except OSError:  # it may hold anything
        return True
