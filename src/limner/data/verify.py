"""Decode every picture once before the first step, so that broken ones do not affect the order.

The order of the pictures is a function of (seed, image count, number of rows). Only if the bad rows
are known beforehand do they change nothing for the good ones. Files that were good are remembered
by path, size, and time of change, pictures inside a table by the table's, and not decoded again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
from filelock import FileLock

from limner.config import Config
from limner.console import progress_lines
from limner.data.dataset import ImageDataset, ImageError, PackedImages, Refused, Row, Streamed
from limner.data.decoding.color import UNUSABLE
from limner.data.images import DECODING
from limner.data.own_folder import cache_may_begin
from limner.data.split import sampling_rank
from limner.errors import LimnerError
from limner.files.fingerprints import DIGEST, RACY_NS, digest, load_array, save_array
from limner.messages import plural

AT_ONCE = 1024
SIZE = 64
"""Side to which a picture is decoded when checked: a JPEG of many pixels is then decoded at a
fraction of its size, but read to its end."""
DECODED_BY = f"{PIL.__version__} {DECODING}"
REMEMBERED_FROM = 1000
"""Rows; fewer are decoded in no time, and leave no trace."""
SAVE_EVERY = 60.0  # seconds: a check of hours that is killed goes on from there

log = logging.getLogger(__name__)


def remove_undecodable(dataset: ImageDataset, config: Config) -> None:
    """Move the rows whose pictures cannot be decoded from `rows` to `refused`.

    With `data.num_samples`, only as many good rows as are wanted stay, by their sampling rank.
    """
    rows, wanted = dataset.rows, config.data.num_samples
    if not rows:
        return
    if not can_be_checked(dataset):
        return
    ranked: Sequence[int] = range(len(rows))
    if wanted is not None and wanted < len(rows):
        ranked = sorted(ranked, key=lambda i: sampling_rank(rows[i].key))
    else:
        wanted = len(rows)
    good: list[int] = []
    UNUSABLE.take()
    remembers = len(rows) >= REMEMBERED_FROM and cache_may_begin(config)
    folder = Path(config.cache.folder) if remembers else None
    with _remembered(folder) as remembered, ThreadPoolExecutor() as threads:
        progress = progress_lines(log, "pictures checked")
        for first in range(0, len(ranked), AT_ONCE):
            some = [rows[i] for i in ranked[first : first + AT_ONCE]]
            reasons = remembered.check(dataset, some, threads)
            for i, reason in zip(ranked[first : first + AT_ONCE], reasons, strict=True):
                if reason is None:
                    good.append(i)
                elif len(good) < wanted:
                    dataset.refused.append(Refused(rows[i].key, reason))
            if len(good) >= wanted:
                break
            progress(first + len(some), len(ranked))
    if count := UNUSABLE.take():
        log.info(
            f"{count:,} {plural(count, 'picture')} with an unusable colour profile, read as sRGB "
            "(limner check-data lists them)"
        )
    dataset.rows = [rows[i] for i in sorted(good[:wanted])]  # type: ignore[misc]
    if not dataset.rows:
        first_bad = dataset.refused[0]
        raise LimnerError(
            f"none of the {len(rows):,} pictures could be used; the first: {first_bad.reason}"
        )


def can_be_checked(dataset: ImageDataset) -> bool:
    """Whether there are files to decode before the first step."""
    if not dataset.rows or isinstance(dataset, Streamed):
        return False  # all of it would have to be read
    # Those that are drawn, not read, have nothing that could be damaged.
    return dataset.path(dataset.rows[0]) is not None or isinstance(dataset, PackedImages)


def undecodable(dataset: ImageDataset, rows: Sequence[Row]) -> list[Refused]:
    """Those of `rows` whose pictures cannot be decoded, with the reasons."""
    with ThreadPoolExecutor() as threads:
        reasons = _Remembered(set()).check(dataset, rows, threads)
    return [Refused(row.key, reason) for row, reason in zip(rows, reasons, strict=True) if reason]


def check_share_refused(refused: int, rows: int, config: Config) -> None:
    """Raises LimnerError where more of all rows than allowed cannot be used."""
    share, limit = refused / max(1, rows), config.data.refused_limit
    if share > limit:
        raise LimnerError(
            f"{refused:,} of {rows:,} rows cannot be used ({share:.0%}, more than "
            f"data.refused_limit {limit:g} allows); each is listed with its reason in "
            f"{Path(config.training.output_dir) / 'refused.jsonl'}; fix them, or raise the limit"
        )


class _Remembered:
    """Signatures of files that were decoded without a fault.

    Args:
        path: where they are kept; None: nowhere.
    """

    def __init__(self, known: set[bytes], path: Path | None = None) -> None:
        self.known, self.new, self.path = known, list[bytes](), path
        self.saved = time.monotonic()

    def save(self) -> None:
        if self.path is None or not self.new:
            return
        self.known |= set(self.new)
        self.new.clear()
        everything = np.frombuffer(b"".join(self.known), dtype=np.uint8).reshape(-1, DIGEST)
        with contextlib.suppress(OSError):
            save_array(self.path, everything)
        self.saved = time.monotonic()

    def check(
        self, dataset: ImageDataset, rows: Sequence[Row], threads: ThreadPoolExecutor
    ) -> list[str | None]:
        """Why each row's picture cannot be used; None for a good one."""

        def fault(row: Row) -> tuple[str | None, bytes | None]:
            signature, calm = signature_of(dataset, row)
            if signature in self.known:
                return None, None
            try:
                dataset.load(row, SIZE)
            except ImageError as error:
                return str(error), None
            return None, signature if calm else None

        found = list(threads.map(fault, rows))
        self.new += [signature for _, signature in found if signature is not None]
        if time.monotonic() - self.saved >= SAVE_EVERY:
            self.save()
        return [reason for reason, _ in found]


def signature_of(dataset: ImageDataset, row: Row) -> tuple[bytes | None, bool]:
    """What a row's picture is by its looks, without reading it, and whether that can be relied on
    yet (see RACY_NS)."""
    path = dataset.path(row)
    if path is None:
        if isinstance(dataset, PackedImages):
            return digest(dataset.signature(row), DECODED_BY), True
        return None, False
    try:
        absolute = os.path.abspath(path)
        found = os.stat(absolute)
    except OSError:
        return None, False
    looks = f"{found.st_size} {found.st_mtime_ns} {DECODED_BY}"
    return digest(absolute, looks), found.st_mtime_ns < time.time_ns() - RACY_NS


@contextlib.contextmanager
def _remembered(folder: Path | None) -> Iterator[_Remembered]:
    """What was found good before; what is found now is added. One process at a time: the others
    of a run then have nothing left to do. A folder that cannot be written to remembers nothing."""
    if folder is None:
        yield _Remembered(set())
        return
    path = folder / "checked.npy"
    with contextlib.ExitStack() as stack:
        writable = True
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(folder / ".checked.lock"))
        except (OSError, NotImplementedError):
            writable = False
        remembered = _Remembered(_read(path), path if writable else None)
        try:
            yield remembered
        finally:  # also of a check that was interrupted
            remembered.save()


def _read(path: Path) -> set[bytes]:
    signatures = load_array(path)
    if signatures is None or signatures.dtype != np.uint8 or signatures.shape[1:] != (DIGEST,):
        return set()
    whole = signatures.tobytes()
    return {whole[i : i + DIGEST] for i in range(0, len(whole), DIGEST)}
