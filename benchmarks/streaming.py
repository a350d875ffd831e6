"""Streamed data: memory use and resuming. `python benchmarks/streaming.py`.

Makes tars of 1,000, 10,000, and 100,000 distinct pictures of 8 pixels. Of each, a new process opens
the data set and loads many pictures, with what memory it holds looked at all along. Then the
largest one's reader is killed at a picture in the middle, and another begins there: how long until
its first batch, and whether the pictures are those of the run that was never interrupted, none
twice and none left out in a pass.

Each is done for a tar on this machine, which is shuffled as a whole, and for one that is fetched in
pieces from a server on this machine's loopback, in windows of 4,096.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from limner.config import Config, load_config
from limner.data.examples import Batch, TrainingExamples
from limner.data.open import open_data, training_order
from limner.data.order import ImageCountSampler
from limner.device import describe

SIZES = (1_000, 10_000, 100_000)
BATCH = 50
MIDDLE = 30_000


def make_tar(path: Path, count: int) -> None:
    """Pictures of one colour each, which is their number."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(count):
            colour = (number % 256, number // 256 % 256, number // 65536)
            image = io.BytesIO()
            Image.new("RGB", (8, 8), colour).save(image, "PNG")
            for ending, data in (("png", image.getvalue()), ("txt", b"picture %d" % number)):
                about = tarfile.TarInfo(f"{number:06d}.{ending}")
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))


def configuration(url: str, cache: str) -> Config:
    return load_config(
        {
            "data": {"dataset_path": url, "image_size": 8, "memory_mb": 0, "train_split": 1},
            "cache": {"folder": cache},
        }
    )


def numbers_of(url: str, cache: str, start: int, workers: int) -> Iterator[list[int]]:
    """The numbers of the pictures, batch by batch, read from their colours."""
    config = configuration(url, cache)
    data = open_data(config)
    order = training_order(data, config)
    examples = TrainingExamples(data.trained, _no_words, 0, 0.0, 0.5, 0.0, order)
    loader: DataLoader[Any] = DataLoader(
        examples,
        batch_sampler=ImageCountSampler(start, BATCH),
        num_workers=workers,
        collate_fn=Batch.of,
    )
    for batch in loader:
        colours = ((batch.image[:, :, 4, 4] + 1) * 127.5).round().long()
        yield (colours[:, 0] + 256 * colours[:, 1] + 65536 * colours[:, 2]).tolist()


def _no_words(caption: str) -> Tensor:
    return torch.zeros(1)


def read(url: str, cache: str, start: int, end: int, workers: int) -> None:
    """What a child process does: a line of JSON for each batch."""
    began, done = time.perf_counter(), start
    me = psutil.Process()
    for numbers in numbers_of(url, cache, start, workers):
        done += len(numbers)
        seconds = time.perf_counter() - began
        line = {"numbers": numbers, "seconds": seconds, "memory": _memory(me)}
        print(json.dumps(line), flush=True)
        if done >= end:
            break


def _memory(process: psutil.Process) -> list[int]:
    """Bytes that are a process's own: resident, without what is shared or is files' cache."""
    about = process.memory_info()
    return [about.rss, about.rss - about.shared]


def child(url: str, cache: str, start: int, end: int, workers: int = 0) -> subprocess.Popen[str]:
    words = [url, cache, str(start), str(end), str(workers)]
    command = [sys.executable, __file__, "--child", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def lines_of(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    assert process.stdout is not None
    found = [json.loads(line) for line in process.stdout if line.startswith("{")]
    if process.wait() not in (0, -signal.SIGKILL):
        raise SystemExit("a process that reads ended with an error")
    return found


def joined(lines: list[dict[str, Any]]) -> list[int]:
    return [number for line in lines for number in line["numbers"]]


def measure(place: str, folder: Path, url_of: Any, sizes: tuple[int, ...]) -> dict[str, Any]:
    cache = str(folder / f"cache-{place.replace(' ', '-')}")
    memory = {}
    for size in sizes:
        url = url_of(size)
        began = time.perf_counter()
        lines = lines_of(child(url, cache, 0, min(size, 2_500)))  # the index is made here
        indexed = lines[0]["seconds"]
        lines = lines_of(child(url, cache, 0, size // 2 if size < max(sizes) else MIDDLE))
        rss = [line["memory"][0] / 2**20 for line in lines]
        own = [line["memory"][1] / 2**20 for line in lines]
        memory[f"{size:,}"] = {
            "seconds to the first batch, with indexing": round(indexed, 2),
            "seconds to the first batch, indexed before": round(lines[0]["seconds"], 2),
            "pictures read": sum(len(line["numbers"]) for line in lines),
            "resident MiB at the first batch, halfway, at the end": _three(rss),
            "of them not shared with files": _three(own),
        }
        print(place, f"{size:,}", memory[f"{size:,}"], f"{time.perf_counter() - began:.0f} s")

    largest = max(sizes)
    url = url_of(largest)
    whole = joined(lines_of(child(url, cache, 0, largest)))
    middle = MIDDLE if largest > MIDDLE else largest // 2 // BATCH * BATCH
    # Killed once it has shown as many; what it had read ahead is lost, and is read again.
    process = child(url, cache, 0, largest, workers=2)
    assert process.stdout is not None
    first = list[int]()
    for line in process.stdout:
        if line.startswith("{"):
            first += json.loads(line)["numbers"]
        if len(first) >= middle:
            break
    _kill(process)
    began = time.perf_counter()
    resumed = child(url, cache, middle, largest, workers=2)
    assert resumed.stdout is not None
    line = next(line for line in resumed.stdout if line.startswith("{"))
    wall, inside = time.perf_counter() - began, json.loads(line)["seconds"]
    rest = json.loads(line)["numbers"] + joined(lines_of(resumed))
    return {
        "memory": memory,
        "resumed at picture": middle,
        "of": largest,
        "seconds from opening the data to the first batch": round(inside, 2),
        "seconds from starting the process to the first batch": round(wall, 2),
        "pictures as in the uninterrupted run": first[:middle] + rest == whole,
        "pictures seen other than once": largest - len(set(first[:middle] + rest)),
    }


def _three(values: list[float]) -> list[float]:
    return [round(values[place], 1) for place in (0, len(values) // 2, -1)]


def _kill(process: subprocess.Popen[str]) -> None:
    family = psutil.Process(process.pid).children(recursive=True)
    for one in (*family, process):
        one.kill()
    process.wait()


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, and parts of them."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "bytes=0-"))
        if asked is None or not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        start, end = int(asked[1]), min(int(asked[2] or size - 1), size - 1)
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(end - start + 1)
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{size}"')
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *words: Any) -> None:
        """Quiet."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--note", default="", help="kept with the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in options.sizes:
            make_tar(folder / f"{size}.tar", size)
        handler = functools.partial(Ranges, directory=name)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        places = {
            "on this machine": lambda size: str(folder / f"{size}.tar"),
            "over HTTP, loopback": lambda size: f"http://127.0.0.1:{port}/{size}.tar",
        }
        found = {
            place: measure(place, folder, url_of, tuple(options.sizes))
            for place, url_of in places.items()
        }
    results = {
        "date": date.today().isoformat(),
        "machine": describe(torch.device("cpu")),
        "cores": os.cpu_count(),
        "command": "python benchmarks/streaming.py",
        "note": options.note,
        **found,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "streaming.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        url, cache, *counts = sys.argv[2:]
        read(url, cache, *map(int, counts))
    else:
        main()
