"""`limner serve` with and without batching, in one run.

    python benchmarks/serve.py outputs/demo                 # any model
    python benchmarks/serve.py outputs/demo --device cuda --clients 32

Both servers are processes of the same command, one with `--batch_size 16`, one with 1, and the same
clients ask each for the same images (one each, seeds in a row), as many at a time as there are
clients. Turns alternate and the best of each counts. The time is the clients': waiting, drawing,
PNG, base64, and HTTP. The images of both must be the same, at most 1/255 apart, or this program
ends. On a CPU batches gain little, as one image keeps its cores busy already.

Results: benchmarks/results/serve.json.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import http.client
import io
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RESULTS = Path(__file__).parent / "results" / "serve.json"
BATCHES = {"batched": 16, "one by one": 1}
PROMPTS = ["a red circle", "two blue squares above a green cross", "a large yellow apple", "a cat"]


@contextmanager
def served(checkpoint: str, device: str, dtype: str, batch_size: int) -> Iterator[int]:
    """A server as a process of its own; yields its port."""
    command = [sys.executable, "-m", "limner", "serve", f"model={checkpoint}", "--port", "0"]
    command += ["--device", device, "--dtype", dtype, "--batch_size", str(batch_size)]
    command += ["--queue", "1000", "--timeout", "3600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if found := re.search(r":(\d+)/v1", line):
                    yield int(found[1])
                    break
            else:
                raise RuntimeError("limner serve ended; its reason stands above")
        finally:
            process.terminate()


def ask(port: int, seed: int, steps: int | None) -> tuple[float, bytes]:
    """Seconds until an image is there, and its file."""
    asked = {"prompt": PROMPTS[seed % len(PROMPTS)], "seed": seed, "num_inference_steps": steps}
    begin = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3600)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/images/generations", json.dumps(asked), headers)
    answer = connection.getresponse()
    body = json.loads(answer.read())
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {body}")
    seconds = time.perf_counter() - begin
    return seconds, base64.b64decode(body["data"][0]["b64_json"])


def measure(port: int, clients: int, images: int, steps: int | None) -> tuple[Any, list[bytes]]:
    """Images per second and seconds of a request, and the images."""
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda seed: ask(port, seed, steps), range(clients)))  # to warm up
        begin = time.perf_counter()
        answers = list(pool.map(lambda seed: ask(port, seed, steps), range(images)))
        seconds = time.perf_counter() - begin
    each = sorted(seconds for seconds, _ in answers)
    found = {
        "images_per_second": round(images / seconds, 3),
        "median_seconds": round(statistics.median(each), 3),
        "slowest_seconds": round(each[-1], 3),
    }
    return found, [image for _, image in answers]


def furthest(some: list[bytes], others: list[bytes]) -> int:
    """The largest difference between the same images of two servers, in 1/255."""
    pairs = zip(map(pixels, some), map(pixels, others), strict=True)
    return max(int(np.abs(one - other).max()) for one, other in pairs)


def pixels(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)), np.int16)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--images", type=int, default=128, help="of each turn")
    parser.add_argument("--steps", type=int, help="default: the model's own")
    parser.add_argument("--turns", type=int, default=2)
    options = parser.parse_args()
    best: dict[str, Any] = {}
    drawn: dict[str, list[bytes]] = {}
    for _ in range(options.turns):
        for name, batch_size in BATCHES.items():
            with served(options.checkpoint, options.device, options.dtype, batch_size) as port:
                found, drawn[name] = measure(port, options.clients, options.images, options.steps)
            print(name, found)
            kept = best.setdefault(name, found)
            best[name] = max(kept, found, key=lambda one: one["images_per_second"])
    apart = furthest(*drawn.values())
    if options.dtype == "float32" and apart > 1:
        raise SystemExit(f"the servers' images are {apart}/255 apart")
    import torch

    from limner.device import describe

    about = {
        "date": datetime.date.today().isoformat(),
        "machine": describe(torch.device(options.device)),
        "versions": {name: version(name) for name in ("torch", "starlette", "uvicorn")},
        **{name: getattr(options, name) for name in ("dtype", "clients", "images", "steps")},
        "turns": options.turns,
        "apart": apart,
    }
    speeds = [best[name]["images_per_second"] for name in BATCHES]
    print(f"batched: {speeds[0] / speeds[1]:.2f} times as many images per second")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(about | {"results": best}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
