"""The index of a shard: key, captions, and picture offset of each sample; built once.

    cache/index/<hash>.index
      8 bytes         MAGIC
      8 bytes         checksum (CRC-32) of all that follows
      8 bytes         length of the header
      header          JSON: of which file, who was refused, where the arrays begin
      arrays          as in ARRAYS, each beginning at a multiple of 8 bytes

The arrays are memory-mapped, so that a million samples are no objects and take no memory of the
process; what was read of the file is given back to the system. The checksum is verified when the
file is opened (0.4 s for a gigabyte, of some million samples), and that of a sample's text whenever
it is read: what is damaged is indexed again, and never trained.
"""

from __future__ import annotations

import array
import json
import logging
import mmap
import os
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from limner.data.dataset import Refused
from limner.data.split import draws
from limner.data.streaming.remote_files import Place, patiently
from limner.errors import LimnerError
from limner.files.atomic import replacing
from limner.files.fingerprints import digest
from limner.redaction import redact_urls

FORMAT = 2
MAGIC = b"LIMNERI2"
START = len(MAGIC) + 16  # of the header
ARRAYS = {
    "text_starts": "<i8",  # [N + 1] where each sample's text begins
    "offsets": "<i8",  # [N] of the picture's first byte in a tar, or its row in a Parquet file
    "sizes": "<i8",  # [N] bytes of the picture in a tar; 0 in a Parquet file
    "held_out": "i1",  # [N] 0, 1, or -1: decided by hash
    "draws": "<f8",  # [N, 2] hashes of the key that decide the split and the sample
    "piece_firsts": "<i8",  # [P + 1] the first sample of each piece
    "piece_at": "<i8",  # [P] its row group in a Parquet file
    "text_sums": "<u4",  # [N] CRC-32 of each sample's text
    "text": "u1",  # JSON of [key, caption, ...] for each sample, one after the other
}
VERIFIED_AT_ONCE = 2**26  # bytes
PIECE_BYTES, PIECE_SAMPLES = 16 * 2**20, 512
"""Of a piece of a tar, what is fetched from far away at once: at most so many."""

log = logging.getLogger(__name__)


class Building:
    """An index that is being made; samples are added in any order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.refused: list[Refused] = []
        self.notes: list[str] = []
        """What people should know of the shard."""
        self.captions = 0
        self.text = bytearray()
        self.starts = array.array("q", [0])
        self.offsets, self.sizes = array.array("q"), array.array("q")
        self.held_out = array.array("b")
        self.draws = array.array("d")
        self.piece_firsts, self.piece_at = array.array("q"), array.array("q")

    def add(
        self,
        key: str,
        captions: Sequence[str],
        offset: int,
        size: int = 0,
        held_out: bool | None = None,
    ) -> None:
        """A sample; its key is unique in the shard, and the shard's name is put before it."""
        key = f"{self.name}/{key}"
        self.captions += len(captions)
        self.text += json.dumps([key, *captions], ensure_ascii=False).encode()
        self.starts.append(len(self.text))
        self.offsets.append(offset)
        self.sizes.append(size)
        self.held_out.append(-1 if held_out is None else held_out)
        self.draws.extend(draws(key))

    def refuse(self, key: str, reason: str) -> None:
        self.refused.append(Refused(f"{self.name}/{key}", redact_urls(reason)))

    def piece(self, at: int) -> None:
        """What is added from here on is in the piece `at` of the shard's own division."""
        self.piece_firsts.append(len(self.offsets))
        self.piece_at.append(at)

    def arrays(self) -> dict[str, np.ndarray]:
        """By the places of the pictures; of several samples of one key the first."""
        offsets, starts = _numbers(self.offsets), _numbers(self.starts)
        text = np.frombuffer(bytes(self.text), dtype=np.uint8)
        hashes = np.frombuffer(self.draws, dtype=np.float64).reshape(-1, 2)
        order = np.argsort(offsets, kind="stable")
        _, first = np.unique(hashes[order, 0], return_index=True)
        if len(first) < len(order):
            again = np.setdiff1d(np.arange(len(order)), first)
            for sample in order[again].tolist():
                (key, *_) = json.loads(bytes(text[starts[sample] : starts[sample + 1]]))
                reason = "a sample before it in the same shard has the same key"
                self.refused.append(Refused(key, reason))
            order = order[np.sort(first)]
        if len(order) != len(offsets) or (np.diff(order) < 0).any():
            text = np.concatenate(
                [text[:0], *(text[starts[i] : starts[i + 1]] for i in order.tolist())]
            )
            lengths = np.diff(starts)[order]
            starts = np.concatenate([[0], np.cumsum(lengths)])
        offsets, sizes = offsets[order], _numbers(self.sizes)[order]
        if len(self.piece_at):
            firsts = np.append(_numbers(self.piece_firsts), len(offsets))
            at = _numbers(self.piece_at)
        else:
            firsts = _pieces(offsets, sizes)
            at = np.zeros(len(firsts) - 1, dtype=np.int64)
        return {
            "text_starts": starts,
            "offsets": offsets,
            "sizes": sizes,
            "held_out": np.frombuffer(self.held_out, dtype=np.int8)[order],
            "draws": hashes[order],
            "piece_firsts": firsts,
            "piece_at": at,
            "text_sums": _sums(text, starts),
            "text": text,
        }


def _sums(text: np.ndarray, starts: np.ndarray) -> np.ndarray:
    whole = np.ascontiguousarray(text).data
    bounds = starts.tolist()
    return np.array([zlib.crc32(whole[a:b]) for a, b in pairwise(bounds)], dtype=np.uint32)


def _numbers(values: array.array[int]) -> np.ndarray:
    return np.frombuffer(values, dtype=np.int64)


def _pieces(offsets: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The first sample of each piece of a tar, and the number of samples: int64 [P + 1]."""
    ends = offsets + sizes
    firsts, first = list[int](), 0
    while first < len(offsets):
        firsts.append(first)
        last = int(np.searchsorted(ends, offsets[first] + PIECE_BYTES, side="right"))
        first = max(first + 1, min(last, first + PIECE_SAMPLES))
    return np.array([*firsts, len(offsets)], dtype=np.int64)


class Index:
    """One shard's index, opened; in another process it opens itself anew."""

    def __init__(self, path: Path, place: Place) -> None:
        """Raises OSError or ValueError where the file is not a whole index."""
        self.path, self.place = path, place
        self.open(verify=True)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "place": self.place}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self.place = state["path"], state["place"]
        try:
            self.open()
        except (OSError, ValueError) as error:
            raise LimnerError(
                f"{self.path} was changed while a run was using it ({error}); start the command "
                "again"
            ) from None

    def open(self, verify: bool = False) -> None:
        with open(self.path, "rb") as file:
            whole = os.fstat(file.fileno()).st_size
            start = file.read(START)
            length = int.from_bytes(start[-8:], "little")
            if not start.startswith(MAGIC) or not 0 < length < whole:
                raise ValueError("its length does not match its header")
            header = file.read(length)
            self.memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if verify:
            self._verify(int.from_bytes(start[len(MAGIC) : len(MAGIC) + 8], "little"))
        header = json.loads(header)
        self.about: dict[str, Any] = header["about"]
        self.captions: int = header["captions"]
        self.notes: list[str] = header["notes"]
        self.refused = [Refused(*row) for row in header["refused"]]
        begin, arrays = _aligned(START + length), {}
        for name, kind in ARRAYS.items():
            count = header["counts"][name]
            if begin + count * np.dtype(kind).itemsize > whole:
                raise ValueError("it is cut off")
            arrays[name] = np.frombuffer(self.memory, dtype=kind, count=count, offset=begin)
            begin = _aligned(begin + arrays[name].nbytes)
        if begin != whole:
            raise ValueError("its length does not match its header")
        self.text, self.text_starts = arrays["text"], arrays["text_starts"]
        self.text_sums = arrays["text_sums"]
        self.offsets, self.sizes = arrays["offsets"], arrays["sizes"]
        self.held_out, self.draws = arrays["held_out"], arrays["draws"].reshape(-1, 2)
        self.piece_firsts, self.piece_at = arrays["piece_firsts"], arrays["piece_at"]

    def __len__(self) -> int:
        return len(self.offsets)

    def sample(self, number: int) -> tuple[str, tuple[str, ...], bool | None]:
        """(key, captions, held out)."""
        text = self.text[self.text_starts[number] : self.text_starts[number + 1]].tobytes()
        if zlib.crc32(text) != self.text_sums[number]:
            raise LimnerError(
                f"{self.path} was damaged while it was in use: the text of sample {number:,} is "
                f"not what was written. Start the command again to index {self.place.url} again. "
                "If it happens again, check the disk"
            )
        key, *captions = json.loads(text)
        aside = int(self.held_out[number])
        return key, tuple(captions), None if aside < 0 else bool(aside)

    def piece_of(self, number: int) -> int:
        """The piece in which a sample is."""
        return int(np.searchsorted(self.piece_firsts, number, side="right")) - 1

    def _verify(self, wanted: int) -> None:
        """Raises ValueError. What was read of the file is given back piece by piece."""
        found, view = 0, memoryview(self.memory)
        for first in range(len(MAGIC) + 8, len(view), VERIFIED_AT_ONCE):
            found = zlib.crc32(view[first : first + VERIFIED_AT_ONCE], found)
            self.give_back()
        view.release()
        if found != wanted:
            raise ValueError("checksum mismatch")

    def give_back(self) -> None:
        """What was read of the file leaves this process's memory; the system's cache has it."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.memory.madvise(mmap.MADV_DONTNEED)


def open_index(
    place: Place,
    name: str,
    kind: str,
    folder: Path,
    build: Callable[[Place, Building], None],
) -> Index:
    """The index of a shard; made if there is none, or if the shard is no longer the same.

    Args:
        name: of the shard in its data set; keys begin with it.
        kind: in what way the shard is read; of another one the index is another.
        folder: of all indexes.
        build: reads the shard and adds its samples.
    """
    path = folder / f"{digest(place.url, kind, name).hex()}.index"
    about = {
        "format": FORMAT,
        "url": place.url,
        "size": place.size,
        "version": place.version,
        "kind": kind,
        "name": name,
    }
    if (found := _read(path, place)) and found.about == about:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    shown = redact_urls(place.url)
    with FileLock(path.with_suffix(".lock")):
        found = _read(path, place)
        if found is None and path.exists() and not _is_of_this_format(path):
            log.info(f"the index of {shown} was written by an earlier version; indexing again")
        elif found is None and path.exists():
            aside = path.with_suffix(".damaged")
            os.replace(path, aside)
            log.info(
                f"{path} is damaged; it was moved to {aside.name}, and {shown} is indexed again"
            )
        if found is not None:
            if found.about == about:
                return found
            log.info(
                f"{shown} has changed and is indexed again. A run that used it before will not "
                "continue exactly as it would have."
            )

        def filled() -> Building:
            building = Building(name)
            build(place, building)
            return building

        try:
            building = patiently(place.url, filled) if not place.is_local else filled()
        except FileNotFoundError:
            raise LimnerError(f"{place.url} no longer exists") from None
        _write(path, about, building)
    return Index(path, place)


def _read(path: Path, place: Place) -> Index | None:
    try:
        return Index(path, place)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _is_of_this_format(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return True


def _write(path: Path, about: dict[str, Any], building: Building) -> None:
    """Whole or not at all."""
    arrays = building.arrays()
    header = json.dumps(
        {
            "about": about,
            "captions": building.captions,
            "notes": building.notes,
            "counts": {name: arrays[name].size for name in ARRAYS},
            "refused": [[row.key, row.reason] for row in building.refused],
        }
    ).encode()
    with replacing(path) as staging, open(staging, "wb") as file:
        file.write(MAGIC + bytes(8))
        total, at = 0, file.tell()

        def put(data: Any) -> None:
            nonlocal total, at
            at += file.write(data)
            total = zlib.crc32(data, total)

        put(len(header).to_bytes(8, "little") + header)
        for name, kind in ARRAYS.items():
            put(bytes(_aligned(at) - at))
            array = np.ascontiguousarray(arrays[name], dtype=kind)
            put(array.data.cast("B") if array.size else b"")
        put(bytes(_aligned(at) - at))
        file.seek(len(MAGIC))
        file.write(total.to_bytes(8, "little"))


def _aligned(place: int) -> int:
    return -(-place // 8) * 8
