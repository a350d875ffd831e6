"""How large a model is, and how fast it draws, in each form in which it can be given away.

    python benchmarks/anywhere.py outputs/demo
    python benchmarks/anywhere.py outputs/demo --onnxruntime_web node_modules/onnxruntime-web/dist

One thread, one picture at a time, the checkpoint's own settings, in one run:

"torch": ImageGenerator. "onnx": draw.py of the folder that `limner export --format onnx` wrote, in
a process of its own. "web": the page that `limner export --format web` wrote, in a headless
Chromium, one worker. "web by ONNX": the same ONNX files by ONNX Runtime Web (WebAssembly, one
thread) in the same browser, by Euler's steps, as many as the checkpoint's solver takes; only with
`--onnxruntime_web`, the folder `dist` of the package of that name.

Each draws a picture that is not counted, and then takes its turn several times. Ratios are of the
seconds that a processor works (`processor_seconds`, a mean; of a browser, all of its processes),
which other programs on the machine change less than those that pass (`seconds`, a median).
All must draw torch's picture (see `LIMITS`), or this program ends. Without a checkpoint, the model
is one of the demo's size with random weights. Results: benchmarks/results/anywhere.json.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import http.server
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "anywhere.json"
PROMPT = "a red apple"
LIMITS = {"float32": 1, "float16": 4, "int8": 16}
"""Largest difference from torch's picture, in 255ths, by how the weights are stored."""

Drawn = tuple[np.ndarray, float, float]
"""A picture, uint8 [h, w, 3], the seconds that it took, and those of a processor."""
Draw = Callable[[int], Drawn]
"""Of a seed."""


def made_up(folder: Path) -> Path:
    """A checkpoint of the demo's size with random weights, none of them zero."""
    import torch

    from limner.apps.demo import demo_config
    from limner.training.trainer import Trainer

    config = demo_config(10, str(folder), torch.device("cpu"))
    trainer = Trainer(config)
    generator = torch.Generator().manual_seed(0)
    for weight in trainer.averaged.parameters():
        weight.data += 0.02 * torch.randn(weight.shape, generator=generator)
    trainer.save_checkpoint(folder / "checkpoint-0")
    return folder / "checkpoint-0"


def by_torch(checkpoint: Path, **settings: Any) -> Draw:
    import torch

    from limner import ImageGenerator

    torch.set_num_threads(1)
    generator = ImageGenerator(checkpoint, device="cpu")

    def draw(seed: int) -> Drawn:
        begin, used = time.perf_counter(), time.process_time()
        picture = generator.generate(PROMPT, seed=seed, **settings)
        ends = time.perf_counter(), time.process_time()
        return np.asarray(picture), ends[0] - begin, ends[1] - used

    return draw


def by_onnx(folder: Path) -> Draw:
    """With the program in the folder."""
    spec = importlib.util.spec_from_file_location("draw", folder / "draw.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    drawer = module.Drawer(threads=1)

    def draw(seed: int) -> Drawn:
        begin, used = time.perf_counter(), time.process_time()
        pictures = drawer(PROMPT, seed=seed)
        return pictures[0], time.perf_counter() - begin, time.process_time() - used

    return draw


def answering(connection: Connection, build: Callable[..., Draw], words: tuple[Any, ...]) -> None:
    draw = build(*words)
    connection.send("ready")
    while (seed := connection.recv()) is not None:
        connection.send(draw(seed))


@contextmanager
def in_a_process(build: Callable[..., Draw], *words: Any) -> Iterator[Draw]:
    """The same in a process of its own, so that one's threads and memory are not another's."""
    here, there = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=answering, args=(there, build, words))
    process.start()
    assert here.recv() == "ready"

    def draw(seed: int) -> Drawn:
        here.send(seed)
        return here.recv()

    yield draw
    here.send(None)
    process.join()


def browsers_seconds() -> float:
    """Seconds of a processor that the browser's processes took so far."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "python" not in process.name():
                used = process.cpu_times()
                total += used.user + used.system
    return total


def by_the_page(page: Any, file: Path, config: dict[str, Any]) -> Draw:
    """With the page's own programs, one picture at a time, so that one worker draws."""
    sampling = config["sampling"]
    asked = {
        "prompt": PROMPT,
        "steps": sampling["num_inference_steps"],
        "guidance": sampling["guidance_scale"],
        "solver": sampling["scheduler_type"],
    }

    def draw(seed: int) -> Drawn:
        if not page.ask("document.title !== '' && typeof drawn === 'function'") or (
            page.ask("location.href") != file.resolve().as_uri()
        ):
            page.open(file, 1280, False)
            page.ask("ready")
            page.ask(f"drawn({json.dumps(asked | {'seed': 1})}, () => 0).then(() => 0)")
        used = browsers_seconds()
        words = json.dumps(asked | {"seed": seed})
        seconds = page.ask(f"drawn({words}, () => 0).then(one => (self.last = one).seconds)")
        used = browsers_seconds() - used
        size, pixels = config["size"], page.ask("[...last.pixels]")
        return np.array(pixels, np.uint8).reshape(size, size, 4)[..., :3], seconds, used

    return draw


RUNTIME = """<!doctype html><meta charset="utf-8"><title>runtime</title>
<script src="ort.wasm.min.js"></script>
<script>
ort.env.wasm.numThreads = 1;
const opened = (async () => ({
  text: await ort.InferenceSession.create("text_encoder.onnx"),
  denoiser: await ort.InferenceSession.create("denoiser.onnx"),
}))();
// asked: {ids: [2 rows], noise, times, last, scale, interval, kind, shape}
async function draw(asked) {
  const {text, denoiser} = await opened, begin = performance.now(), {last, shape} = asked;
  const float = (numbers, dims) => new ort.Tensor("float32", Float32Array.from(numbers), dims);
  const ids = BigInt64Array.from(asked.ids.flat(), BigInt);
  const told = await text.run({ids: new ort.Tensor("int64", ids, [2, asked.ids[0].length])});
  const first = {};
  for (const [name, {data, dims, type}] of Object.entries(told))
    first[name] = new ort.Tensor(type, data.slice(0, data.length / 2), [1, ...dims.slice(1)]);
  let x = Float32Array.from(asked.noise);
  const n = x.length, clean = (output, at, now) => output.map((v, i) =>
    asked.kind === "velocity" ? x[i % n] - now / last * v : v);
  for (let i = 0; i + 1 < asked.times.length; i++) {
    const now = asked.times[i], ratio = asked.times[i + 1] / now;
    const [low, high] = asked.interval.map(share => share * last);
    const guided = asked.scale !== 1 && low <= now && now <= high, rows = guided ? 2 : 1;
    const both = new Float32Array(rows * n);
    for (let row = 0; row < rows; row++) both.set(x, row * n);
    const {prediction} = await denoiser.run({
      x: float(both, [rows, ...shape]), t: float(Array(rows).fill(now), [rows]),
      ...(guided ? told : first),
    });
    const seen = clean(prediction.data, x, now), next = new Float32Array(n);
    for (let j = 0; j < n; j++) {
      const x0 = guided ? seen[n + j] + asked.scale * (seen[j] - seen[n + j]) : seen[j];
      next[j] = ratio * x[j] + (1 - asked.times[i + 1] / last - ratio * (1 - now / last)) * x0;
    }
    x = next;
  }
  self.last = x;
  return (performance.now() - begin) / 1000;
}
</script>
"""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder's files, on this machine only."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def by_runtime_web(page: Any, address: str, folder: Path, config: dict[str, Any]) -> Draw:
    """With ONNX Runtime Web, by Euler's steps."""
    from limner.apps.onnx_folder.runner.drawer import Drawer, levels
    from limner.apps.onnx_folder.runner.noise import normal

    drawer, sampling = Drawer(folder), config["sampling"]
    rows = [drawer.tokenizer(text) for text in (PROMPT, "")]
    longest = max(map(len, rows))
    shape = config["shape"]
    asked = {
        "ids": [row + [0] * (longest - len(row)) for row in rows],
        "times": drawer.schedule.times(sampling),
        "last": drawer.schedule.last,
        "scale": sampling["guidance_scale"],
        "interval": sampling["guidance_interval"],
        "kind": config["prediction_type"],
        "shape": shape,
    }

    def draw(seed: int) -> Drawn:
        noise = normal(np.random.RandomState(seed), int(np.prod(shape))).tolist()
        if not page.ask("location.href").startswith(address):
            page.go(address + "runtime.html", 1280, False)
            page.ask(f"draw({json.dumps(asked | {'noise': noise})})")
        used = browsers_seconds()
        seconds = page.ask(f"draw({json.dumps(asked | {'noise': noise})})")
        used = browsers_seconds() - used
        x = np.array(page.ask("[...last]"), np.float32)
        return levels(x.reshape(1, *shape))[0], seconds, used

    return draw


def size_of(path: Path) -> int:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files)


def measure(checkpoint: Path, work: Path, turns: int, runtime: Path | None) -> dict[str, Any]:
    sys.path.insert(0, str(HERE.parent / "tests" / "support"))
    from browser import find_browser, open_browser

    from limner.apps.onnx_folder.build import export_onnx
    from limner.apps.publishing.export import export
    from limner.apps.web_page.build import export_web_page

    weights = export(checkpoint, work / "weights.safetensors")
    folders = {p: export_onnx(checkpoint, work / f"onnx-{p}", p) for p in LIMITS}
    pages = {p: export_web_page(checkpoint, work / f"{p}.html", p) for p in ("float32", "int8")}
    config = json.loads((folders["float32"] / "config.json").read_text(encoding="utf-8"))
    if config["flow_map"] or config["scheduler"]["objective"] != "flow_matching":
        raise SystemExit("only for models of flow matching that were not distilled")
    program = find_browser()
    if program is None:
        raise SystemExit("there is no Chromium, Chrome or Edge")
    draws: dict[tuple[str, str], Draw] = {}
    sizes = {("torch", "float32"): size_of(weights)}
    with ExitStack() as stack:
        draws["torch", "float32"] = stack.enter_context(in_a_process(by_torch, checkpoint))
        for precision, folder in folders.items():
            draws["onnx", precision] = stack.enter_context(in_a_process(by_onnx, folder))
            sizes["onnx", precision] = size_of(folder)
        page = stack.enter_context(open_browser(program, work / "profile"))
        for precision, file in pages.items():
            draws["web", precision] = by_the_page(page, file, config)
            sizes["web", precision] = size_of(file)
        euler = None
        if runtime is not None:
            folder, served_from = folders["float32"], work / "served"
            served_from.mkdir()
            for path in [*folder.glob("*.onnx"), *runtime.glob("ort*wasm*")]:
                (served_from / path.name).write_bytes(path.read_bytes())
            (served_from / "runtime.html").write_text(RUNTIME, encoding="utf-8")
            address = stack.enter_context(served(served_from))
            draws["web by ONNX", "float32"] = by_runtime_web(page, address, folder, config)
            needed = (
                "ort.wasm.min.js",
                "ort-wasm-simd-threaded.wasm",
                "ort-wasm-simd-threaded.mjs",
            )
            theirs = sum((served_from / name).stat().st_size for name in needed)
            sizes["web by ONNX", "float32"] = size_of(folder) + theirs
            euler = stack.enter_context(in_a_process(by_euler, checkpoint))
        found: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in draws}
        apart: dict[tuple[str, str], int] = dict.fromkeys(draws, 0)
        for turn in range(turns + 1):
            exact = draws["torch", "float32"](turn)[0]
            for key, draw in draws.items():
                wanted = euler(turn)[0] if euler and key[0] == "web by ONNX" else exact
                picture, *seconds = draw(turn)
                difference = int(np.abs(picture.astype(int) - wanted).max())
                apart[key] = max(apart[key], difference)
                if difference > LIMITS[key[1]]:
                    raise SystemExit(f"{key} draws another picture: {difference} of 255")
                if turn:
                    found[key].append((seconds[0], seconds[1]))
    lines: list[dict[str, Any]] = []
    for (way, precision), both in found.items():
        seconds, used = ([one[i] for one in both] for i in range(2))
        median, mean = statistics.median(seconds), statistics.mean(used)
        line = {"way": way, "weights": precision, "megabytes": sizes[way, precision] / 1e6}
        line |= {"seconds": median, "fastest": min(seconds), "slowest": max(seconds)}
        line |= {"processor_seconds": mean, "largest_difference": apart[way, precision]}
        first = lines[0]["processor_seconds"] if lines else mean
        line |= {"times_torch": first / mean}
        lines.append({k: round(v, 3) if isinstance(v, float) else v for k, v in line.items()})
    keys = ("parameters", "size", "weights")
    return {
        "model": {key: config[key] for key in keys},
        "sampling": config["sampling"],
        "lines": lines,
    }


def by_euler(checkpoint: Path) -> Draw:
    return by_torch(checkpoint, scheduler_type="euler")


def processor() -> str:
    about = Path("/proc/cpuinfo")
    if about.is_file():
        for line in about.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?", help="a run folder, a checkpoint, or a file")
    parser.add_argument("--turns", type=int, default=7, help="pictures of each")
    parser.add_argument("--onnxruntime_web", type=Path, help="the folder dist of that package")
    parser.add_argument("--beside", default="nothing known", help="what else the machine did")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started below
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        checkpoint = Path(options.checkpoint) if options.checkpoint else made_up(work / "made_up")
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        found = measure(checkpoint, work, options.turns, options.onnxruntime_web)
    about = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} threads, of which one was used",
        "beside": options.beside,
        "load_at_the_start": load,
        "versions": {name: version(name) for name in ("torch", "onnxruntime", "numpy")},
        "checkpoint": "given" if options.checkpoint else "the demo's size, random weights",
        "prompt": PROMPT,
        "turns": options.turns,
    }
    for line in found["lines"]:
        print(line)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(about | found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
