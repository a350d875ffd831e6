"""The store of precomputed values, keyed by what they were computed from.

    cache/latents-3fa1b2c4d5e6/
      key.json                     how the values were made: which weights, size, precision, ...
      shard-<hash>.safetensors     ids [N, 16], starts [N + 1], sums [N], values [all counts, ...]
      shard-<hash>.suspect         a row of that shard was found damaged

A row is found by its id, the hash of the content it was made from: a data set that grows needs
only its new rows, equal pictures are kept once, and a picture that changes is another row. An id of
zeros is content that could not be read: it is never stored, and never found. A folder is for one
key. Shards are memory-mapped, and what was read does not stay in memory.

A picture that could not be decoded is tried again at the next opening: a disk may work again, a
package may have been installed. One whose values are no numbers would give the same again.

Each row has a checksum, verified whenever it is read. A row that is damaged is refused, as a
picture is; its shard is looked through at the next opening, moved aside, and computed anew.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import logging
import math
import mmap
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner.data.dataset import ImageError
from limner.errors import LimnerError
from limner.files.atomic import recover_in, write_text_whole
from limner.files.fingerprints import DIGEST, digest
from limner.files.small_files import read_json
from limner.memory import give_back_freed_memory

log = logging.getLogger(__name__)

Key = Mapping[str, str | int | float | bool | None]
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
GIVE_BACK_AFTER = 32 * 2**20
"""Bytes mapped after which they are given back; the system's cache still has them."""
NOT_FINITE = (
    "the values computed for it are not finite (NaN or infinite); use a higher precision "
    "(training.mixed_precision=no), or remove its row"
)
UNREAD = (
    "its file could not be read before the run; check the disk and the permissions, or remove its "
    "row"
)
MAPPED_AT_ONCE = 2**18
"""Bytes that the system maps around a place that is read, at most about."""


@dataclass
class Shard:
    """One file: where its values begin, and where each row's begin among them."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    starts: np.ndarray  # int64 [N + 1]
    sums: np.ndarray  # uint32 [N]
    mapped: tuple[mmap.mmap, Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"mapped": None}  # a worker maps the file for itself

    def values(self) -> Tensor:
        if self.mapped is None:
            with open(self.path, "rb") as file:
                # Private, and never written to: torch wants memory that it could write.
                memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            count = math.prod(self.shape)
            flat = torch.frombuffer(memory, dtype=self.dtype, count=count, offset=self.offset)
            self.mapped = memory, flat.view(self.shape)
        return self.mapped[1]

    def row(self, number: int) -> Tensor:
        """A copy of a row's values. Raises ImageError if they are damaged."""
        first, last = int(self.starts[number]), int(self.starts[number + 1])
        values = self.values()[first:last].clone()
        assert self.mapped is not None
        begin, end = self.offset + first * self.row_bytes, self.offset + last * self.row_bytes
        if zlib.crc32(memoryview(self.mapped[0])[begin:end]) != int(self.sums[number]):
            raise ImageError(
                "its stored values are damaged (checksum mismatch); they are computed again at the "
                "next start"
            )
        return values

    def suspect(self) -> Path:
        """The file that says that the shard is to be looked through."""
        return self.path.with_suffix(".suspect")

    def damaged_rows(self) -> int:
        """How many of its rows are damaged; all of it is read."""
        damaged = 0
        for number in range(len(self.sums)):
            try:
                self.row(number)
            except ImageError:
                damaged += 1
        self.give_back()
        return damaged

    def give_back(self) -> None:
        if self.mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.mapped[0].madvise(mmap.MADV_DONTNEED)


class Store:
    """Rows of [count, ...] values by id. Open one with `Store.open`, fill it with `fill`.

    Attributes:
        folder: where the shards are.
        tried: rows of which this process kept nothing, and why.
        longest: the largest count of any row.
    """

    def __init__(self, folder: Path, key: Key) -> None:
        self.folder, self.key = folder, dict(key)
        self.tried: dict[bytes, str] = {}
        self.refresh()

    @classmethod
    def open(cls, parent: Path, name: str, key: Key) -> Store:
        """The store for a key, in `parent / name-<hash of the key>`; made if it is not there.

        Raises:
            LimnerError: the folder's key.json says something else than its name: somebody changed
                it or copied another one in. It is not used.
        """
        folder = parent / f"{name}-{_hash_of(key)}"
        file = folder / "key.json"
        if not file.exists():
            if any(folder.glob("shard-*")):
                raise LimnerError(_unusable(folder, "its key.json is missing"))
            write_text_whole(file, json.dumps(dict(key), indent=1))
        recover_in(folder)
        found = _read_key(file)
        if found is None:
            raise LimnerError(_unusable(folder, "its key.json is damaged"))
        if differences := _differences(found, key):
            raise LimnerError(_unusable(folder, differences))
        return cls(folder, key)

    def refresh(self) -> None:
        """Look at the folder anew."""
        self.shards: list[Shard] = []
        self.refused = dict(self.tried)
        ids, counts = [np.zeros((0, DIGEST), dtype=np.uint8)], [np.zeros(0, dtype=np.int32)]
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            opened = self._open_shard(path)
            if opened is None:
                continue
            shard, shard_ids, refused = opened
            if not shard.starts[-1] and NOT_FINITE not in refused.values():
                with contextlib.suppress(OSError):  # of an earlier release: nothing that lasts
                    path.unlink()
                continue
            self.shards.append(shard)
            self.refused |= {bytes.fromhex(id): reason for id, reason in refused.items()}
            ids.append(shard_ids)
            counts.append(np.diff(shard.starts).astype(np.int32))
        self.ids, self.counts = np.concatenate(ids), np.concatenate(counts)
        self.firsts = np.cumsum([0, *(len(shard.starts) - 1 for shard in self.shards)]).tolist()
        keys = _keys(self.ids)
        # Of a row that was refused first and computed later the values are found.
        good = np.flatnonzero(self.counts)
        order = good[np.argsort(keys[good], kind="stable")]
        self.order = order.astype(np.int32)  # two billion rows
        self.keys = keys[self.order]
        self.longest = int(self.counts.max(initial=0))
        self.bytes_read = 0
        give_back_freed_memory()  # the pieces that were joined above

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, ids: np.ndarray) -> np.ndarray:
        """uint8 [N, 16] -> position of each row, int64 [N]; -1: not there, refused, or unknown."""
        places = self._places(ids)
        places[~ids.any(axis=1)] = -1  # an earlier release may have stored such a row
        return places

    def missing(self, ids: np.ndarray) -> np.ndarray:
        """Indices of the ids that are to be computed, each content once, in order: int64 [M]."""
        lacking = np.flatnonzero((self._places(ids) < 0) & ids.any(axis=1))
        if lasting := {id for id, reason in self.refused.items() if reason == NOT_FINITE}:
            lacking = lacking[[ids[i].tobytes() not in lasting for i in lacking]]
        if not len(lacking):
            return lacking
        halves = np.ascontiguousarray(ids[lacking]).view("<u8")
        order = np.lexsort(halves.T)  # stable: of equal contents the first comes first
        again = (halves[order][1:] == halves[order][:-1]).all(axis=1)
        return np.sort(lacking[order[np.concatenate([[True], ~again])]])

    def reason(self, id: bytes) -> str | None:
        """Why a row was refused when it was computed; None if it was not."""
        return self.refused.get(id) if any(id) else UNREAD

    def read(self, position: int) -> Tensor:
        """A row's values [count, ...], a copy, in the store's precision. Raises ImageError if
        they are not what was written."""
        number = bisect.bisect_right(self.firsts, position) - 1
        shard = self.shards[number]
        try:
            values = shard.row(position - self.firsts[number])
        except ImageError:
            with contextlib.suppress(OSError):
                shard.suspect().touch()
            raise
        self.bytes_read += max(values.nbytes, MAPPED_AT_ONCE)
        if self.bytes_read > GIVE_BACK_AFTER:
            self.bytes_read = 0
            for shard in self.shards:
                shard.give_back()
        return values

    def other_keys(self) -> list[str]:
        """A sentence for each store of the same name that is not this one: what differs."""
        name = self.folder.name.rpartition("-")[0]
        sentences = []
        for folder in sorted(self.folder.parent.glob(f"{name}-*")):
            found = _read_key(folder / "key.json")
            if folder != self.folder and found is not None:
                differences = _differences(found, self.key)
                sentences.append(f"{folder} exists but is not used: {differences}")
        return sentences

    def _places(self, ids: np.ndarray) -> np.ndarray:
        if not len(self.keys) or not len(ids):
            return np.full(len(ids), -1, dtype=np.int64)
        at = np.searchsorted(self.keys, _keys(ids)).clip(max=len(self.keys) - 1)
        places = self.order[at].astype(np.int64)
        places[(self.ids[places] != ids).any(axis=1)] = -1
        return places

    def _open_shard(self, path: Path) -> tuple[Shard, np.ndarray, dict[str, str]] | None:
        """The shard, its ids, and its refused rows; None (and an event) for a damaged one."""
        try:
            with open(path, "rb") as file:
                whole = os.fstat(file.fileno()).st_size
                size = int.from_bytes(file.read(8), "little")
                if size > whole:
                    raise ValueError("its length does not match its header")
                header = json.loads(file.read(size))
                about, begin = json.loads(header["__metadata__"]["about"]), 8 + size

                def array(name: str, dtype: str) -> np.ndarray:
                    first, last = header[name]["data_offsets"]
                    if not 0 <= first <= last <= whole:
                        raise ValueError("its header is damaged")
                    file.seek(begin + first)
                    return np.frombuffer(file.read(last - first), dtype=dtype)

                starts, sums = array("starts", "<i8"), array("sums", "<u4")
                ids = array("ids", "u1").reshape(-1, DIGEST)
                values = header["values"]
                end = begin + max(tensor["data_offsets"][1] for n, tensor in header.items()
                                  if n != "__metadata__")  # fmt: skip
                if whole != end or len(starts) != len(ids) + 1 or len(sums) != len(ids):
                    raise ValueError("its length does not match its header")
                places = [array.tobytes() for array in (ids, starts, sums)]
                if checksum_of(places) != about["sum"]:
                    raise ValueError("checksum mismatch")
            if differences := _differences(about["key"], self.key):
                raise ValueError(f"it belongs to another store: {differences}")
            shard = Shard(
                path,
                begin + values["data_offsets"][0],
                tuple(values["shape"]),
                DTYPES[values["dtype"]],
                starts,
                sums,
            )
            self._look_through(shard)
            return shard, ids, about["refused"]
        except FileNotFoundError:  # another process has just put it away
            return None
        except OSError as error:  # not the shard's fault: permissions, too many files, a network
            raise LimnerError(f"{path} cannot be read: {error.strerror or error}") from None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            aside = path.with_suffix(".damaged")
            with contextlib.suppress(FileNotFoundError):  # another process has done it
                os.replace(path, aside)
            log.info(
                f"{path} cannot be used ({error}); it was moved to {aside.name}, and its rows are "
                "computed again"
            )
            return None

    def _look_through(self, shard: Shard) -> None:
        """A shard of which a row was found damaged. Raises ValueError if any is."""
        if not shard.suspect().exists():
            return
        damaged = shard.damaged_rows()
        shard.mapped = None  # Windows renames no file that is mapped
        shard.suspect().unlink(missing_ok=True)
        if damaged:
            raise ValueError(f"checksum mismatch in {damaged:,} of its rows")


def checksum(values: Tensor) -> int:
    """CRC-32 of a row's values."""
    return zlib.crc32(values.contiguous().view(torch.uint8).numpy().data) if values.numel() else 0


def checksum_of(parts: Sequence[bytes]) -> int:
    """CRC-32 of several pieces one after the other."""
    total = 0
    for part in parts:
        total = zlib.crc32(part, total)
    return total


def _hash_of(key: Key) -> str:
    return digest(json.dumps(dict(key), sort_keys=True)).hex()[:12]


def _keys(ids: np.ndarray) -> np.ndarray:
    """The first eight bytes of each id as a number, to sort by."""
    return np.ascontiguousarray(ids[:, :8]).view("<u8")[:, 0]


def _read_key(file: Path) -> dict[str, Any] | None:
    try:
        found = read_json(file)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} is {there.get(name)} in the store and {here.get(name)} in this run"
        for name in dict.fromkeys([*here, *there])
        if there.get(name) != here.get(name)
    )


def _unusable(folder: Path, why: str) -> str:
    return f"{folder} is not a usable store: {why}; delete the folder, or move it away"
