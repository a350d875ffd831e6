"""Content hashes of files, remembered by path, size, and modification time."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from limner.errors import LimnerError
from limner.files.atomic import replacing

DIGEST = 16
"""Bytes of the hash of a file's content (BLAKE2b)."""
ENTRY = np.dtype(
    [("path", f"V{DIGEST}"), ("size", "<i8"), ("mtime_ns", "<i8"), ("content", f"V{DIGEST}")]
)
RACY_NS = 2_000_000_000
"""A file that changed this shortly before it was read may change again within the same tick of the
file system's clock (git calls it racily clean): its hash is not remembered."""
AT_ONCE = 1024
SAVE_EVERY = 60.0  # seconds, so that a kill does not lose hours of reading
MAY_PASS = (errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, getattr(errno, "ESTALE", -1))
"""Read errors that may be temporary, as on a network drive."""
RETRY_AFTER = 0.4  # seconds before the last try; half of it before the first retry

T = TypeVar("T")


def digest(*parts: bytes | str) -> bytes:
    """A hash of 16 bytes; each part's length counts, so that ("ab", "c") is not ("a", "bc")."""
    hasher = hashlib.blake2b(digest_size=DIGEST)
    for part in parts:
        encoded = part.encode("utf-8", errors="replace") if isinstance(part, str) else part
        hasher.update(len(encoded).to_bytes(8, "little"))
        hasher.update(encoded)
    return hasher.digest()


class Fingerprints:
    """Hashes of files' contents, kept in one file; a changed size or modification time makes a file
    be read again.

    As in git's index. A missing or damaged file of hashes counts as empty.

    Args:
        path: where the hashes are kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known = _load(path)
        self.new: list[np.ndarray] = []

    def of_files(self, files: Sequence[Path]) -> np.ndarray:
        """The hash of each file's content, uint8 [N, 16]; zeros for one that cannot be read."""
        entries = np.zeros(len(files), dtype=ENTRY)
        for number, file in enumerate(files):
            absolute = os.path.abspath(file)
            if (found := _patiently(partial(os.stat, absolute))) is not None:
                entries[number] = (
                    digest(absolute),
                    found.st_size,
                    found.st_mtime_ns,
                    bytes(DIGEST),
                )
        there = entries["path"] != np.zeros(1, ENTRY)["path"]
        unread = there & ~self._recall(entries)
        places = np.flatnonzero(unread)
        saved = time.monotonic()
        with ThreadPoolExecutor(8) as threads:  # reading waits for the disk, and hashing is C
            for first in range(0, len(places), AT_ONCE):
                some = places[first : first + AT_ONCE]
                contents = threads.map(lambda i: _content(files[i]), some)
                for i, content in zip(some, contents, strict=True):
                    entries["content"][i] = np.void(content)
                calm = entries["mtime_ns"][some] < time.time_ns() - RACY_NS
                readable = entries["content"][some] != np.zeros(1, ENTRY)["content"]
                if (calm & readable).any():
                    self.new.append(entries[some[calm & readable]])
                if time.monotonic() - saved >= SAVE_EVERY and self.path.parent.is_dir():
                    with contextlib.suppress(OSError):  # tried again at the end
                        self.save()
                    saved = time.monotonic()
        return _as_bytes(entries["content"])

    def save(self) -> None:
        """Save the new hashes, merged with those that another process saved meanwhile. If that
        fails (a full disk, a cache of another user), the files are read again next time."""
        if not self.new:
            return
        # Newest last: for a path that was read twice, the last entry counts.
        merged = np.concatenate([_load(self.path), *self.new])
        _, last = np.unique(_keys(merged["path"][::-1]), return_index=True)
        merged = merged[::-1][last]
        with contextlib.suppress(OSError):
            save_array(self.path, merged)
            self.known, self.new = _load(self.path), []

    def _recall(self, entries: np.ndarray) -> np.ndarray:
        """Fill in the known hashes; returns which entries those are."""
        recalled = np.zeros(len(entries), dtype=bool)
        if not len(self.known):
            return recalled
        keys, wanted = _keys(self.known["path"]), _keys(entries["path"])
        order = np.argsort(keys)
        at = np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)
        found = self.known[order[at]]
        recalled = (
            (found["path"] == entries["path"])
            & (found["size"] == entries["size"])
            & (found["mtime_ns"] == entries["mtime_ns"])
        )
        entries["content"][recalled] = found["content"][recalled]
        return recalled


def _content(file: Path) -> bytes:
    def read() -> bytes:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, _hasher).digest()

    return _patiently(read) or bytes(DIGEST)


def _patiently(read: Callable[[], T], retries: int = 2) -> T | None:
    """The result of `read`, which is retried after temporary errors; None if it fails."""
    try:
        return read()
    except OSError as error:
        if not retries or error.errno not in MAY_PASS:
            return None
    time.sleep(RETRY_AFTER / retries)
    return _patiently(read, retries - 1)


def _hasher() -> Any:
    return hashlib.blake2b(digest_size=DIGEST)


def _load(path: Path) -> np.ndarray:
    known = load_array(path)
    good = known is not None and known.dtype == ENTRY and known.ndim == 1
    return known if known is not None and good else np.zeros(0, dtype=ENTRY)


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array atomically as a .npy file with a checksum appended.

    Raises:
        LimnerError: the path holds an array that was not written by `save_array`.
        OSError: it could not be written.
    """
    if _is_foreign(path):
        raise LimnerError(
            f"{path} is an array that Limner did not write, so it is not overwritten; set another "
            "cache.folder, or move it away"
        )
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    with replacing(path) as staging:
        staging.write_bytes(file.getvalue() + digest(file.getvalue()))


def load_array(path: Path) -> np.ndarray | None:
    """Read what `save_array` wrote; None if the file is missing or damaged."""
    try:
        data = path.read_bytes()
        if digest(data[:-DIGEST]) != data[-DIGEST:]:
            return None
        return np.lib.format.read_array(io.BytesIO(data[:-DIGEST]), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def _is_foreign(path: Path) -> bool:
    """Whether the path is a complete .npy file without a checksum."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_array(file, allow_pickle=False)
            return not file.read(1)
    except (OSError, ValueError, EOFError, SyntaxError):
        return False


def _keys(paths: np.ndarray) -> np.ndarray:
    """The first eight bytes of each hash as a number, to sort by."""
    return np.ascontiguousarray(_as_bytes(paths)[:, :8]).view("<u8")[:, 0]


def _as_bytes(column: np.ndarray) -> np.ndarray:
    return np.frombuffer(np.ascontiguousarray(column).tobytes(), dtype=np.uint8).reshape(-1, DIGEST)
