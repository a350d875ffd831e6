"""Compute the missing values of a store, in pieces, so that an interrupted job resumes.

The missing rows, in the data set's order, are cut into chunks; each chunk becomes one shard named
by the hash of its ids. So whoever computes a chunk, and after however many kills, the same files
with the same bytes come out. Within a chunk each finished batch is appended to a partial file,
from which a killed run goes on. A chunk is taken by locking it, so that several processes, started
by any launcher or by hand, share the work.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from limner.data.precomputed.store import NOT_FINITE, Store, checksum, checksum_of
from limner.errors import LimnerError
from limner.files.atomic import replacing
from limner.files.fingerprints import DIGEST
from limner.files.full_disk import DiskFull, as_os_error

Make = Callable[[list[int]], list[Tensor | str]]
POLL = 0.5  # seconds between looks at the chunks that other processes hold


def fill(
    store: Store,
    ids: np.ndarray,
    make: Make,
    rows_per_shard: int,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Compute the rows that the store lacks.

    Args:
        ids: uint8 [N, 16], all rows that are wanted, in the data set's order.
        make: takes some indices into `ids` and computes [count, ...] values for each; a str in
            their place is the reason why that row is refused, until the next time.
        batch_size: indices that `make` is given at a time.
        progress: is told the rows done and the rows there are to do.

    Raises:
        LimnerError: the disk is full; finished shards stay usable.
    """
    missing = store.missing(ids)
    chunks = [missing[i : i + rows_per_shard] for i in range(0, len(missing), rows_per_shard)]
    done = 0

    def count(rows: int) -> None:
        nonlocal done
        done += rows
        if progress is not None:
            progress(done, len(missing))

    _clean_up(store)
    try:
        while chunks:
            left = [
                chunk for chunk in chunks if not _take(store, ids, chunk, make, batch_size, count)
            ]
            if len(left) == len(chunks):  # all that is left is in other processes' hands
                time.sleep(POLL)
            chunks = left
    except OSError as error:
        full = as_os_error(error, None, store.folder / "shard") or error
        if not isinstance(full, DiskFull):
            raise
        raise LimnerError(
            f"{full}; what was finished is kept. Free some disk space, or set cache.folder to "
            "another disk, and start again"
        ) from None
    store.refresh()


def check_space(folder: Path, needed: int) -> None:
    """Raises LimnerError if the disk has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise LimnerError(
            f"{needed / 2**30:,.2f} GiB are needed in {folder} and {free / 2**30:,.2f} GiB are "
            "free; free some disk space, or set cache.folder to another disk"
        )


def _take(
    store: Store,
    ids: np.ndarray,
    chunk: np.ndarray,
    make: Make,
    batch_size: int,
    count: Callable[[int], None],
) -> bool:
    """Compute a chunk, unless it is there already; False if another process holds it."""
    name = hashlib.blake2b(ids[chunk].tobytes(), digest_size=8).hexdigest()
    target = store.folder / f"shard-{name}.safetensors"
    lock = FileLock(target.with_suffix(".lock"))
    if not target.exists():
        try:
            with lock.acquire(timeout=0):
                if not target.exists():
                    _compute(store, ids[chunk], chunk, target, make, batch_size, count)
        except Timeout:
            return False
        with contextlib.suppress(OSError):  # Windows keeps a file that another has open
            os.unlink(lock.lock_file)
        return True
    count(len(chunk))
    return True


def _compute(
    store: Store,
    ids: np.ndarray,
    chunk: np.ndarray,
    target: Path,
    make: Make,
    batch_size: int,
    count: Callable[[int], None],
) -> None:
    # Of one batch size: a release that takes another starts the chunk anew.
    partial = target.with_suffix(f".{batch_size}.partial")
    batches = list(_read_batches(partial))
    for done in range(len(batches)):
        count(len(chunk[done * batch_size :][:batch_size]))
    with open(partial, "ab") as file:
        for first in range(len(batches) * batch_size, len(chunk), batch_size):
            indices = chunk[first : first + batch_size].tolist()
            batch = _packed(make(indices))
            batches.append(batch)
            file.write(len(batch).to_bytes(8, "little") + _checksum(batch) + batch)
            file.flush()
            os.fsync(file.fileno())
            count(len(indices))
    reasons = [reason for batch in batches for reason in _reasons(batch)]
    if all(reason and reason != NOT_FINITE for reason in reasons):
        # A file of that name would say that there is nothing to be tried again.
        pairs = zip(ids, reasons, strict=True)
        store.tried |= {id.tobytes(): reason for id, reason in pairs}
    else:
        _write_shard(store, ids, batches, reasons, target)
    for leftover in store.folder.glob(f"{target.stem}.*partial"):
        leftover.unlink(missing_ok=True)


def _clean_up(store: Store) -> None:
    """Remove what a kill left beside finished shards: their batches, and their locks."""
    for ending in ("partial", "lock"):
        for path in store.folder.glob(f"shard-*.{ending}"):
            name = path.name.partition(".")[0]
            if (store.folder / f"{name}.safetensors").exists():
                with contextlib.suppress(OSError):  # Windows keeps a file that another has open
                    path.unlink(missing_ok=True)


def _packed(rows: list[Tensor | str]) -> bytes:
    """A batch of rows as bytes: each one's count, all values, and the reasons for having none."""
    values, counts, reasons = list[Tensor](), list[int](), list[str]()
    for row in rows:
        if isinstance(row, Tensor) and not torch.isfinite(row).all():
            row = NOT_FINITE
        reasons.append(row if isinstance(row, str) else "")
        counts.append(0 if isinstance(row, str) else len(row))
        if isinstance(row, Tensor):
            values.append(row.contiguous().cpu())
    if len(kinds := {(value.dtype, value.shape[1:]) for value in values}) > 1:
        raise LimnerError(f"values of different kinds cannot share a store: {kinds}")
    tensors = {"counts": torch.tensor(counts)} | ({"values": torch.cat(values)} if values else {})
    return safetensors.torch.save(tensors, {"reasons": json.dumps(reasons)})


def _read_batches(partial: Path) -> Iterator[bytes]:
    """The whole batches of a partial file; what follows them, half-written, is cut off."""
    if not partial.exists():
        return
    with open(partial, "r+b") as file:
        end, whole = 0, os.fstat(file.fileno()).st_size
        while len(head := file.read(8 + DIGEST)) == 8 + DIGEST:
            length = int.from_bytes(head[:8], "little")
            if length > whole - file.tell() or _checksum(batch := file.read(length)) != head[8:]:
                break
            end = file.tell()
            yield batch
        file.truncate(end)


def _write_shard(
    store: Store, ids: np.ndarray, batches: list[bytes], reasons: list[str], target: Path
) -> None:
    """All batches in one safetensors file, whole or not at all."""
    loaded = [safetensors.torch.load(batch) for batch in batches]
    counts = torch.cat([tensors["counts"] for tensors in loaded])
    values = [tensors["values"] for tensors in loaded if "values" in tensors]
    kinds = {(value.dtype, value.shape[1:]) for value in values}
    if len(kinds) > 1:
        raise LimnerError(f"values of different kinds cannot share {store.folder}: {kinds}")
    refused = {
        id.tobytes().hex(): reason for id, reason in zip(ids, reasons, strict=True) if reason
    }
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    joined = torch.cat(values) if values else torch.zeros(0)
    sums = torch.tensor([checksum(joined[a:b]) for a, b in pairwise(starts.tolist())])
    places = [ids.tobytes(), starts.numpy().tobytes(), sums.to(torch.uint32).numpy().tobytes()]
    # As bytes, written here: the library's own writing reports a full disk as something else.
    shard = safetensors.torch.save(
        {
            "ids": torch.from_numpy(ids.copy()),
            "starts": starts,
            "sums": sums.to(torch.uint32),
            "values": joined,
        },
        # One entry: the order of several is not the same every time.
        {"about": json.dumps({"key": store.key, "refused": refused, "sum": checksum_of(places)})},
    )
    with replacing(target, tidy=False, needed=len(shard)) as staging:
        staging.write_bytes(shard)


def _reasons(batch: bytes) -> list[str]:
    size = int.from_bytes(batch[:8], "little")
    return json.loads(json.loads(batch[8 : 8 + size])["__metadata__"]["reasons"])


def _checksum(batch: bytes) -> bytes:
    return hashlib.blake2b(batch, digest_size=DIGEST).digest()
