"""Training throughput against the published DiT's training step, in one run.

    python benchmarks/training_speed.py                 # CPU: 384 x 8, 256 tokens
    python benchmarks/training_speed.py --device cuda   # four sizes at 256 and 1,024 tokens

Each variant runs in its own process; rounds alternate and the best of each counts. It reports
pictures per second, the share of the matrix multiplication peak of this machine in the same
precision (MFU; FLOPs of one forward pass as torch counts them, attention included, times three),
seconds until the first step is done (compiling), and peak memory. Results:
benchmarks/results/training_speed-<device>.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SIZES = {  # width, layers, heads: about 10M, 33M, 130M, 675M parameters as published
    "S-": (256, 8, 4),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "XL": (1152, 28, 16),
}
PROCESSOR = {"384 x 8": (384, 8, 6)}
PIXELS, CHANNELS = 4, 3
VARIANTS = (
    "published, eager float32",
    "published, eager bfloat16",
    "published, compiled bfloat16",
    "Limner dit",
    "Limner modern",
    "Limner modern, Muon",
)


def measure(
    variant: str, shape: list[int], tokens: int, batch: int, device: str, steps: int
) -> dict[str, Any]:
    """One variant's figures, in this process."""
    import torch

    from limner.training.monitor import throughput

    place = torch.device(device)
    make = published if variant.startswith("published") else limner
    began = time.perf_counter()
    step, flops, parameters = make(variant, shape, tokens, batch, place)
    built = time.perf_counter()
    with throughput.synchronised(place):
        step()
    first = time.perf_counter() - built
    for _ in range(2):
        step()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        with throughput.synchronised(place):
            step()
        seconds.append(time.perf_counter() - start)
    dtype = torch.float32 if "float32" in variant else torch.bfloat16
    peak = throughput.matmul_peak(place, dtype)
    speed = batch / statistics.median(seconds)
    memory = torch.cuda.max_memory_allocated() if device == "cuda" else _peak_memory()
    return {
        "pictures_per_second": round(speed, 2),
        "mfu": round(speed * flops / peak, 3),
        "gflops_per_picture": round(flops / 1e9, 2),
        "peak_gflops": round(peak / 1e9),
        "parameters": parameters,
        "to_first_step": round(first, 1),
        "built": round(built - began, 1),
        "memory_mib": round(memory / 2**20),
    }


def published(
    variant: str, shape: list[int], tokens: int, batch: int, place: Any
) -> tuple[Callable[[], object], float, int]:
    import torch
    from published_dit import CLASSES, PublishedDiT, PublishedTraining

    from limner.training.monitor.throughput import training_flops

    side = round(tokens**0.5) * PIXELS
    torch.manual_seed(0)
    model = PublishedDiT(side, PIXELS, CHANNELS, *shape).to(place)
    x = torch.randn(batch, CHANNELS, side, side, device=place)
    y = torch.randint(0, CLASSES, (batch,), device=place)
    flops = training_flops(model, (x[:1], torch.ones(1, device=place), y[:1]))
    training = PublishedTraining(model, "bfloat16" in variant, "compiled" in variant)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return lambda: training.step(x, y), flops, parameters


def limner(
    variant: str, shape: list[int], tokens: int, batch: int, place: Any
) -> tuple[Callable[[], object], float, int]:
    import torch

    from limner import console
    from limner.config import load_config
    from limner.training.batches import load_batches
    from limner.training.compiling import compile_model
    from limner.training.monitor.throughput import training_flops
    from limner.training.trainer import Trainer

    width, layers, heads = shape
    side = round(tokens**0.5) * PIXELS
    config = {
        "data": {"dataset_name": "emoji", "subset": "demo", "image_size": side},
        "model": {
            "architecture": "dit" if "dit" in variant else "modern",
            "patch_size": PIXELS,
            "hidden_size": width,
            "num_layers": layers,
            "num_heads": heads,
        },
        "text_encoder": {"max_length": 16},
        "training": {
            "device": place.type,
            "batch_size": batch,
            "num_workers": 0,
            "trackers": ["none"],
            "max_steps": 10**6,
            "output_dir": tempfile.mkdtemp(),
        },
        "optimizer": {"type": "muon" if "Muon" in variant else "adamw"},
    }
    trainer = Trainer(load_config(config))
    console.inform_on_stderr()
    compile_model(trainer.run)
    # Cached data: the same few batches again and again, as a loader ahead of the model gives them.
    loader = load_batches(trainer.run)
    kept = [next(loader) for _ in range(4)]
    place_in = [0]

    def step() -> None:
        place_in[0] += 1
        trainer.run.train_step([kept[place_in[0] % len(kept)]])
        trainer.run.update_ema()

    image = torch.zeros(1, CHANNELS, side, side, device=place)
    text = trainer.run.inputs.words.encode([""]).to(place)
    flops = training_flops(trainer.averaged, (image, torch.ones(1, device=place), text))
    return step, flops, sum(p.numel() for p in trainer.model.parameters())


def _peak_memory() -> int:
    import psutil

    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, help="pictures per step (cpu: 16, cuda: 64)")
    parser.add_argument("--steps", type=int, help="timed steps per turn (cpu: 8, cuda: 30)")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=VARIANTS, help="variants")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(**json.loads(options.one))))
        return
    gpu = options.device == "cuda"
    batch, steps = options.batch or (64 if gpu else 16), options.steps or (30 if gpu else 8)
    lines: list[dict[str, Any]] = []
    for size, shape in (SIZES if gpu else PROCESSOR).items():
        for tokens in (256, 1024) if gpu else (256,):
            found = best_of(
                options.only, options.turns, options.device, shape, tokens, batch, steps
            )
            for variant, figures in found.items():
                lines.append({"size": size, "tokens": tokens, "variant": variant, **figures})
                ratio = figures.get("ratio", "")
                print(f"{size:8s} {tokens:5d} {variant:30s} {figures} {ratio}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"training_speed-{options.device}.json"
    about = {"date": datetime.date.today().isoformat(), "batch": batch, "machine": machine(gpu)}
    path.write_text(json.dumps(about | {"lines": lines}, indent=1), encoding="utf-8")


def best_of(
    variants: Sequence[str],
    turns: int,
    device: str,
    shape: tuple[int, int, int],
    tokens: int,
    batch: int,
    steps: int,
) -> dict[str, dict[str, Any]]:
    """Each variant's best turn, and its ratio to the first one; what does not fit says so."""
    best: dict[str, dict[str, Any]] = {}
    for _ in range(turns):
        for variant in variants:
            task = {"variant": variant, "shape": shape, "tokens": tokens, "batch": batch}
            task |= {"device": device, "steps": steps}
            command = [sys.executable, __file__, "--one", json.dumps(task)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                best.setdefault(variant, {"failed": done.stderr.strip().splitlines()[-1][:200]})
                continue
            figures = json.loads(done.stdout.splitlines()[-1])
            known = best.get(variant, {}).get("pictures_per_second", 0)
            if figures["pictures_per_second"] > known:
                best[variant] = figures
    first = best[variants[0]].get("pictures_per_second")
    for figures in best.values():
        if first and "pictures_per_second" in figures:
            figures["ratio"] = round(figures["pictures_per_second"] / first, 2)
    return best


def machine(gpu: bool) -> str:
    import torch

    from limner.device import describe

    return f"{describe(torch.device('cuda' if gpu else 'cpu'))}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
