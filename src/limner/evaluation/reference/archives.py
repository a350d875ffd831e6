"""Published `.npz` files of images and statistics: ADM's reference batches and pytorch-fid.

ADM (Dhariwal & Nichol 2021, openai/guided-diffusion): `arr_0` uint8 [N, H, W, 3], and in references
also `mu` and `sigma` of the Inception-v3 features of a whole data set (and `mu_s` and `sigma_s` of
spatial features, which are not used here). pytorch-fid: `mu`, `sigma`. Images are read in batches,
so gigabytes of them need not fit in memory, and nothing is unpickled.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from limner.data.dataset import Refused
from limner.errors import LimnerError
from limner.files.fingerprints import Fingerprints, digest
from limner.metrics.frechet import Gaussian

IMAGES, MEAN, COVARIANCE = "arr_0", "mu", "sigma"
WIDEST = 2**14
"""Maximum number of features; a header that claims more is damaged."""


class Archive:
    """An archive, opened and validated; a `Source` if it contains images.

    Attributes:
        count: number of images, or None.

    Raises:
        LimnerError: the file is not such an archive, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self.refused: list[Refused] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                names = {name.removesuffix(".npy") for name in archive.namelist()}
                for name in (IMAGES, MEAN, COVARIANCE):
                    if name in names:
                        self.shapes[name] = self._check(archive, name)
        except (OSError, zipfile.BadZipFile) as error:
            why = getattr(error, "strerror", None) or error
            raise self._error(f"it cannot be read: {why}") from None
        if IMAGES not in self.shapes and MEAN not in self.shapes:
            there = ", ".join(sorted(names)) or "nothing"
            raise self._error(
                f"it contains neither images ({IMAGES}) nor statistics ({MEAN}, {COVARIANCE}); "
                f"found: {there}"
            )
        if (MEAN in self.shapes) != (COVARIANCE in self.shapes):
            raise self._error(f"it contains only one of {MEAN} and {COVARIANCE}")
        shape = self.shapes.get(IMAGES)
        self.count: int | None = shape[0] if shape else None
        self.preparation = f"{shape[2]} x {shape[1]} pixels, as published" if shape else ""

    def contents(self, cache: Path) -> bytes:
        """The hash of the whole file, cached in `cache`."""
        known = Fingerprints(cache / "contents.npy")
        (found,) = known.of_files([self.path])
        if not found.any():
            raise self._error("it cannot be read")
        if cache.is_dir():
            known.save()
        return digest(found.tobytes())

    def gaussian(self) -> Gaussian | None:
        """The published mean and covariance, if any; the number of images is unknown."""
        if MEAN not in self.shapes:
            return None
        mean, covariance = (
            torch.from_numpy(self._array(name).astype(np.float64)) for name in (MEAN, COVARIANCE)
        )
        if not (torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
            raise self._error("its statistics contain NaN or infinite values")
        if not torch.allclose(covariance, covariance.T, rtol=1e-3, atol=1e-6):
            raise self._error(f"{COVARIANCE} is not symmetric, so it is not a covariance")
        return Gaussian(mean, covariance, None)

    def batches(self, size: int) -> Iterator[Tensor]:
        """uint8 [B, H, W, 3]."""
        count, *image = self.shapes[IMAGES]
        try:
            with zipfile.ZipFile(self.path) as archive, _opened(archive, IMAGES) as file:
                _header(file)
                for first in range(0, count, size):
                    some = min(size, count - first)
                    content = file.read(some * math.prod(image))
                    array = np.frombuffer(bytearray(content), dtype=np.uint8)
                    yield torch.from_numpy(array.reshape(some, *image))
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise self._error(f"it is damaged: {error}") from None

    def _check(self, archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
        """The shape of an array, after validating its header."""
        try:
            with _opened(archive, name) as file:
                shape, by_columns, dtype = _header(file)
                start = file.tell()
        except (ValueError, EOFError, SyntaxError, zlib.error) as error:
            raise self._error(f"the header of {name} is damaged: {error}") from None
        if name == IMAGES:
            fits = len(shape) == 4 and shape[-1] == 3 and dtype == np.uint8 and not by_columns
            wanted = "uint8 images [N, H, W, 3]"
        else:
            width = shape[0] if shape else 0
            wanted_shape = (width,) if name == MEAN else (width, width)
            fits = dtype.kind == "f" and shape == wanted_shape and 0 < width <= WIDEST
            wanted = "numbers [width]" if name == MEAN else "numbers [width, width]"
        if not fits:
            raise self._error(f"{name} should be {wanted}; it is {dtype} {list(shape)}")
        whole = archive.getinfo(f"{name}.npy").file_size
        if whole != start + math.prod(shape) * dtype.itemsize:
            raise self._error(
                f"{name} is truncated: {whole:,} bytes are not {list(shape)} of {dtype}"
            )
        return shape

    def _array(self, name: str) -> np.ndarray:
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                return archive[name]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise self._error(f"it is damaged: {error}") from None

    def _error(self, what: str) -> LimnerError:
        return LimnerError(f"{self.path}: {what}")


def _opened(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    return archive.open(f"{name}.npy")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and dtype; leaves the file at the first value."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    return read(file)
