"""Reading precomputed latents: speed against decoding JPEGs, and memory for a million rows.

    python benchmarks/store_reading.py

Rows are latents of 256-pixel pictures ([4, 32, 32] in float16, 8 KiB), read in random order: by one
process, and through a DataLoader as training does it. Memory and opening time are measured with
rows of [4, 4, 4] so that a million of them fit on any disk, each in a fresh process that reads
20,000 random rows. Results are kept in benchmarks/results/store_reading.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from made_up import jpeg_folder
from torch.utils.data import DataLoader, Dataset

from limner.data.images import decode
from limner.data.precomputed.fill import fill
from limner.data.precomputed.store import Store

RESULTS = Path(__file__).parent / "results" / "store_reading.json"
KEY = {"made": "up"}


def made_up_store(folder: Path, rows: int, tail: tuple[int, ...]) -> Store:
    store = Store.open(folder, f"rows-{rows}", KEY)
    ids = np.random.default_rng(0).integers(0, 256, (rows, 16), dtype=np.uint8)
    row = torch.randn(1, *tail).half()
    fill(store, ids, lambda some: [row] * len(some), 4096, 4096)
    return store


class Rows(Dataset[torch.Tensor]):
    def __init__(self, store: Store) -> None:
        self.store = store

    def __getitem__(self, position: int) -> torch.Tensor:
        return self.store.read(position)[0]


def rows_per_second(store: Store, count: int) -> float:
    places = np.random.default_rng(1).integers(0, len(store), count).tolist()
    start = time.perf_counter()
    for place in places:
        store.read(place)
    return count / (time.perf_counter() - start)


def checked_per_second(store: Store, count: int) -> float:
    """Rows whose checksum alone is computed: what verifying takes of each that is read."""
    shard = store.shards[0]
    shard.values()
    assert shard.mapped is not None
    size = 2 * int(np.prod(shard.shape[1:]))
    numbers = np.random.default_rng(1).integers(0, len(shard.sums), count).tolist()
    whole = memoryview(shard.mapped[0])
    start = time.perf_counter()
    for number in numbers:
        first = shard.offset + number * size
        if zlib.crc32(whole[first : first + size]) != shard.sums[number]:
            raise SystemExit("a row is damaged")
    return count / (time.perf_counter() - start)


def loaded_per_second(store: Store, batches: int, workers: int) -> float:
    """Through worker processes, in batches of 256; the first of them do not count."""
    random = np.random.default_rng(2).integers(0, len(store), (batches + 20, 256)).tolist()
    loader: DataLoader[torch.Tensor] = DataLoader(
        Rows(store), batch_sampler=random, num_workers=workers
    )
    start = 0.0
    for number, _ in enumerate(loader):
        if number == 19:
            start = time.perf_counter()
    return batches * 256 / (time.perf_counter() - start)


def jpegs_per_second(folder: Path) -> float:
    files = sorted((jpeg_folder(folder, count=200, side=500) / "images").iterdir())
    start = time.perf_counter()
    for file in files:
        decode(file, 256)
    return len(files) / (time.perf_counter() - start)


def opening(folder: Path, rows: int) -> dict[str, float]:
    """Seconds to open a store, and resident memory after reading 20,000 random rows."""
    command = [sys.executable, __file__, "--open", str(folder), "--rows", str(rows)]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def open_and_read(folder: Path, rows: int) -> None:
    import psutil

    start = time.perf_counter()
    store = Store.open(folder, f"rows-{rows}", KEY)
    seconds = time.perf_counter() - start
    rows_per_second(store, 20_000)
    resident = psutil.Process().memory_info().rss / 2**20
    print(json.dumps({"seconds": round(seconds, 3), "resident_mib": round(resident, 1)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        open_and_read(options.open, options.rows)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = made_up_store(folder, options.rows, (4, 32, 32))
        found = {
            "rows": options.rows,
            "one_process": round(rows_per_second(store, 50_000)),
            "checksums_alone": round(checked_per_second(store, 50_000)),
            "loader_2_workers": round(loaded_per_second(store, 200, 2)),
            "jpegs_one_process": round(jpegs_per_second(folder / "jpegs"), 1),
        }
        many = {}
        for rows in (10_000, 1_000_000):
            made_up_store(folder, rows, (4, 4, 4))
            many[f"{rows:,}"] = opening(folder, rows)
    for name, value in found.items():
        print(f"{name:20s} {value:,}" + ("" if name == "rows" else " a second"))
    for name, figures in many.items():
        print(f"{name:>10s} rows: opened in {figures['seconds']} s, {figures['resident_mib']} MiB")
    date = datetime.date.today().isoformat()
    RESULTS.write_text(json.dumps({"date": date, **found, "memory": many}, indent=1), "utf-8")


if __name__ == "__main__":
    main()
