"""Sources of reference images: anything that yields images in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from limner.data import images as files
from limner.data.dataset import ImageError, Refused
from limner.data.examples import DecodedImages
from limner.data.folder_walk import FolderWalk
from limner.errors import LimnerError
from limner.files.fingerprints import Fingerprints, digest
from limner.messages import plural


class Source(Protocol):
    """Images in a fixed order.

    Attributes:
        name: display name.
        count: number of images, including unreadable ones; None if there are no images.
        preparation: a description of the resizing; part of the cache key.
        refused: images that `batches` could not decode; filled during iteration.
    """

    name: str
    count: int | None
    preparation: str
    refused: list[Refused]

    def contents(self, cache: Path) -> bytes:
        """A hash of all images in order; `cache` holds the hashes of files."""
        ...

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield uint8 [B, S, S, 3] in order, B at most `size`."""
        ...


class DataImages:
    """Images of a data set, cropped and resized as for training.

    Args:
        images: the training or held-out images of `limner.data.open.Data`.
        which: their indices; None: all.
    """

    def __init__(self, images: DecodedImages, which: Sequence[int] | None = None) -> None:
        self.images = images
        self.which = list(range(len(images.rows)) if which is None else which)
        self.count: int | None = (n := len(self.which))
        self.name = f"{n:,} {plural(n, 'image')} of the data set"  # not the name of a folder
        # Files are cropped and resized (data/images.py); built-in data sets render at any size.
        crop = getattr(images.set, "crop", None)
        how = f"{crop} crop, scaled (Lanczos, Pillow), in sRGB" if crop else "drawn at that size"
        self.preparation = f"{images.image_size} x {images.image_size} pixels, {how}"
        self.refused: list[Refused] = []

    def contents(self, cache: Path) -> bytes:
        known = Fingerprints(cache / "contents.npy")
        rows = [self.images.rows[i] for i in self.which]
        found = self.images.set.contents(rows, known)
        if cache.is_dir():
            known.save()
        return digest(found.tobytes())

    def batches(self, size: int) -> Iterator[Tensor]:
        self.refused = []
        for first in range(0, len(self.which), size):
            loaded = []
            for position in self.which[first : first + size]:
                try:
                    loaded.append(self.images.load(position))
                except ImageError as error:
                    self.refused.append(Refused(self.images.rows[position].key, str(error)))
            if loaded:
                yield torch.stack(loaded)


class ImageFolder:
    """All images in a folder and its subfolders, sorted by name; captions are not needed.

    Args:
        image_size: side of the squares that images are cropped and resized to, as for training.

    Raises:
        LimnerError: the folder does not exist, or contains no images.
    """

    def __init__(self, folder: Path, image_size: int) -> None:
        self.image_size, self.name = image_size, str(folder)
        self.files = sorted(
            directory / name
            for directory, _, names in FolderWalk(folder)
            for name in names
            if Path(name).suffix.lower() in files.EXTENSIONS
        )
        if not self.files:
            what = "contains no images" if folder.is_dir() else "is not a folder"
            raise LimnerError(f"{folder} {what}")
        self.count: int | None = len(self.files)
        self.preparation = (
            f"{image_size} x {image_size} pixels, center crop, scaled (Lanczos, Pillow), in sRGB"
        )
        self.refused: list[Refused] = []

    def contents(self, cache: Path) -> bytes:
        """Hash of the files; an unreadable file counts as zeros and is refused later."""
        known = Fingerprints(cache / "contents.npy")
        found = known.of_files(self.files)
        if cache.is_dir():
            known.save()
        return digest(found.tobytes())

    def batches(self, size: int) -> Iterator[Tensor]:
        self.refused = []
        for first in range(0, len(self.files), size):
            loaded = []
            for path in self.files[first : first + size]:
                try:
                    loaded.append(torch.from_numpy(files.decode(path, self.image_size)))
                except ImageError as error:
                    self.refused.append(Refused(str(path), str(error)))
            if loaded:
                yield torch.stack(loaded)
