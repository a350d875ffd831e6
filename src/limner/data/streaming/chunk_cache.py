"""A disk cache for pieces of remote shards, shared between processes.

    cache/pieces/<hash>.piece
      int64           N, how many pictures
      int64 [N + 1]   where each begins, counted from the first
      int64 [N]       checksum (CRC-32) of each, verified when it is read
      bytes           the pictures, as they are encoded

Processes and threads that need the same piece at once wait for the one that fetches it. Together
the pieces take at most `cache.pieces_mb`; those that were not used for longest go first, and are
fetched anew if they are needed again. What is learned does not depend on any of it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from limner.errors import LimnerError
from limner.files.atomic import recover_in, replacing

OPEN = 16
"""Pieces (or tars) that a process keeps open."""

Fetch = Callable[[], Sequence[bytes]]


class Files:
    """Files that stay open between reads, the last few of them; for threads, too."""

    def __init__(self) -> None:
        self._start()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._start()

    def _start(self) -> None:
        self.opened: OrderedDict[Path, BinaryIO] = OrderedDict()
        self.lock = threading.Lock()
        self.process = os.getpid()

    def read(self, path: Path, parts: Callable[[BinaryIO], bytes]) -> bytes:
        """What `parts` reads from the file. Raises OSError."""
        if self.process != os.getpid():  # forked: the other's files share their place with ours
            self._start()
        with self.lock:
            file = self.opened.pop(path, None) or self._open(path)
            self.opened[path] = file
            try:
                return parts(file)
            except (OSError, ValueError):  # what takes its place is another file
                self.opened.pop(path).close()
                raise

    def _open(self, path: Path) -> BinaryIO:
        while len(self.opened) >= OPEN:
            self.opened.popitem(last=False)[1].close()
        file = open(path, "rb")  # noqa: SIM115
        with contextlib.suppress(OSError):
            os.utime(path) if path.suffix == ".piece" else None  # used now: it is not to go yet
        return file


class Pieces:
    """The pieces in a folder.

    Args:
        most_bytes: of all pieces together.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder, self.most_bytes = folder, most_bytes
        self.files = Files()
        recover_in(folder)

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.piece"

    def has(self, name: str) -> bool:
        return self.path(name).exists()

    def image(self, name: str, number: int, fetch: Fetch, keep: Collection[str] = ()) -> bytes:
        """A piece's `number`-th picture; the piece is fetched if it is not there.

        Args:
            keep: pieces that will be needed soon, and are not to go for others.
        """
        path = self.path(name)
        for _ in range(3):  # another process may remove what was just there, or it was damaged
            try:
                return self.files.read(path, lambda file: _image(file, number))
            except FileNotFoundError:
                pass
            except ValueError:
                with contextlib.suppress(OSError):
                    path.unlink()
            self.get(name, fetch, keep)
        raise LimnerError(
            f"{path} is deleted as soon as it is written: cache.pieces_mb {self.most_bytes >> 20} "
            "is too small for the pieces that are read at the same time, or the disk is faulty"
        )

    def get(self, name: str, fetch: Fetch, keep: Collection[str] = (), wait: bool = True) -> None:
        """Have a piece on the disk. `wait`: for another that is fetching it."""
        path = self.path(name)
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        try:
            with lock.acquire(timeout=-1 if wait else 0):
                if not _is_whole(path):
                    self._write(path, fetch())
        except Timeout:
            return
        self.make_room({*keep, name})

    def _write(self, path: Path, images: Sequence[bytes]) -> None:
        starts = np.cumsum([0, *map(len, images)], dtype="<i8")
        sums = np.array([zlib.crc32(image) for image in images], dtype="<i8")
        needed = int(starts[-1]) + 16 * (len(images) + 1)
        try:
            # What did not reach the disk is fetched again: it has checksums.
            with (
                replacing(path, durable=False, tidy=False, needed=needed) as staging,
                open(staging, "wb") as file,
            ):
                file.write(len(images).to_bytes(8, "little") + starts.tobytes() + sums.tobytes())
                file.writelines(images)
        except OSError as error:
            raise LimnerError(
                f"{path} cannot be written ({error.strerror or error}): free some disk space, or "
                "set cache.folder to another disk. The same command resumes from the last "
                "checkpoint"
            ) from None

    def make_room(self, keep: Collection[str]) -> None:
        """Remove the pieces that were not used for longest, as far as there are too many."""
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(".piece"):
                    with contextlib.suppress(OSError):
                        about = entry.stat()
                        found.append((about.st_mtime_ns, about.st_size, Path(entry.path)))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.most_bytes:
                break
            if path.stem in keep:
                continue
            with contextlib.suppress(OSError):  # Windows keeps a file that another has open
                path.unlink()
                total -= size
                path.with_suffix(".lock").unlink()


def _image(file: BinaryIO, number: int) -> bytes:
    """Raises ValueError if the piece is damaged, or not whole."""
    file.seek(0)
    count, whole = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
    begin = 8 * (2 * count + 2)  # of the pictures
    if not 0 <= number < count or begin > whole:
        raise ValueError("the piece is damaged")
    file.seek(8 + 8 * number)
    start, end = (int.from_bytes(file.read(8), "little") for _ in range(2))
    file.seek(8 * (count + 2 + number))
    wanted = int.from_bytes(file.read(8), "little")
    if not 0 <= start <= end <= whole - begin:
        raise ValueError("the piece is damaged")
    file.seek(begin + start)
    found = file.read(end - start)
    if zlib.crc32(found) != wanted:
        raise ValueError("the piece is damaged")
    return found


def _is_whole(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            count = int.from_bytes(file.read(8), "little")
            file.seek(8 + 8 * count)
            end = int.from_bytes(file.read(8), "little")
            return os.fstat(file.fileno()).st_size == 8 * (2 * count + 2) + end
    except OSError:
        return False
