"""Where the pictures of a reference come from: anything that can be gone through once in order."""

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


class Source(Protocol):
    """Pictures in an order.

    Attributes:
        name: for people.
        count: pictures that there are, those that will be refused included; None: it holds none.
        preparation: how they came to their size, in words; part of the key of what is cached.
        refused: pictures that `batches` could not decode; filled as it goes.
    """

    name: str
    count: int | None
    preparation: str
    refused: list[Refused]

    def contents(self, cache: Path) -> bytes:
        """A hash of all pictures in their order; `cache` remembers hashes of files."""
        ...

    def batches(self, size: int) -> Iterator[Tensor]:
        """uint8 [B, S, S, 3], B at most `size`. Goes from the first to the last."""
        ...


class DataImages:
    """Some pictures of a data set, as a model learns them: its crop, its size.

    Args:
        images: trained or held-out ones of `limner.data.open.Data`.
        which: positions among them; None: all.
    """

    def __init__(self, images: DecodedImages, which: Sequence[int] | None = None) -> None:
        self.images = images
        self.which = list(range(len(images.rows)) if which is None else which)
        self.name = f"{len(self.which):,} pictures of the data set"  # not what a folder is called
        self.count: int | None = len(self.which)
        # Files are cropped and scaled (data/images.py); the built-in sets draw at any size.
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
    """All pictures in a folder and those within it, by their names; captions are not asked for.

    Args:
        image_size: they are cropped and scaled to squares of it, as pictures to train on are.

    Raises:
        LimnerError: it is no folder, or holds no picture.
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
            what = "contains no pictures" if folder.is_dir() else "is no folder"
            raise LimnerError(f"{folder} {what}")
        self.count: int | None = len(self.files)
        self.preparation = (
            f"{image_size} x {image_size} pixels, center crop, scaled (Lanczos, Pillow), in sRGB"
        )
        self.refused: list[Refused] = []

    def contents(self, cache: Path) -> bytes:
        """Of the files; one that cannot be read counts as one of zeros, and is refused later."""
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
