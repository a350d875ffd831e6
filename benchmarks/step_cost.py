"""The cost of a training step on this machine, what each optimisation saves, and where the time of
a run goes.

    python benchmarks/step_cost.py

Each variant is the demo's training step in its own process, the best of two rounds (the machine
may be busy during one); ratios are relative to the first. Then the demo's model and the default
one train for some steps with everything that `limner train` does, pictures being in memory, and
each part of the loop is timed. Results are kept in benchmarks/results/step_cost.json.
"""

from __future__ import annotations

import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "step_cost.json"
VARIANTS = {
    "as it is": [],
    "flash attention of the processor": ["flash"],
    "freed memory given back": ["give-back"],
    "no torch.compile": ["training.compile_model=false"],
    "float32": ["training.mixed_precision=no"],
    "AdamW for all": ["optimizer.type=adamw"],
    "dit as published": ["model.architecture=dit"],
}

LOOPS: dict[str, tuple[int, list[str]]] = {
    "demo": (60, []),
    "384 x 8, 256 tokens": (
        30,
        ["model.hidden_size=384", "model.num_layers=8", "model.num_heads=6", "model.patch_size=4"],
    ),
}
"""Steps, and overrides of the demo's configuration."""


def measure(words: list[str]) -> dict[str, float]:
    """Seconds of a step (median of 20 after 5), and what the processor's matrix product reaches."""
    import torch

    from limner import console, memory
    from limner.apps.demo import demo_config
    from limner.config import load_config
    from limner.models import attention
    from limner.training.compiling import compile_model
    from limner.training.monitor import throughput
    from limner.training.trainer import Trainer

    if "flash" in words:
        attention.SHORT = 0
    if "give-back" in words:
        memory.keep_freed_memory = lambda: None
    overrides = [word for word in words if "=" in word]
    with tempfile.TemporaryDirectory() as folder:
        base = demo_config(10.0, folder, torch.device("cpu")).model_dump(mode="json")
        base["training"]["trackers"] = ["none"]
        trainer = Trainer(load_config(base, overrides))
        console.inform_on_stderr()
        compile_model(trainer.run)
        trainer.batches.restart()
        seconds = []
        for _ in range(25):
            start = time.perf_counter()
            trainer.step()
            seconds.append(time.perf_counter() - start)
    peak = throughput.matmul_peak(torch.device("cpu"), trainer.run.dtype)
    return {"step": statistics.median(seconds[5:]), "peak_gflops": peak / 1e9}


PARTS = {
    "loading a batch": ("Batches", "of_next_update"),
    "forward and backward": ("Update", "gradients"),
    "clipping and the optimizer": ("Update", "__call__"),
    "the average of the weights": ("Run", "update_ema"),
}


def where_time_goes(words: list[str], steps: int) -> dict[str, float]:
    """Shares of the loop's time after the first pictures were decoded and the model compiled."""
    from limner.apps.demo import demo_config
    from limner.config import load_config
    from limner.training.batches import Batches
    from limner.training.monitor.monitor import RunMonitor
    from limner.training.run import Run
    from limner.training.train_step import TrainStep
    from limner.training.trainer import Trainer

    spent: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    marks: list[tuple[float, dict[str, float]]] = []
    owners: dict[str, Any] = {"Batches": Batches, "Run": Run, "Update": TrainStep}

    def timed(name: str, owner: Any, method: str) -> None:
        before = getattr(owner, method)

        def wrapper(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return before(*arguments, **named)
            finally:
                spent[name] += time.perf_counter() - start

        setattr(owner, method, wrapper)

    for name, (owner, method) in PARTS.items():
        timed(name, owners[owner], method)
    step_done = RunMonitor.step_done

    def marked(self: RunMonitor, *arguments: Any) -> None:
        step_done(self, *arguments)
        if self.state.step in (warm, steps):
            marks.append((time.perf_counter(), dict(spent)))

    setattr(RunMonitor, "step_done", marked)  # noqa: B010 (mypy would not have it otherwise)
    with tempfile.TemporaryDirectory() as folder:
        base = demo_config(10.0, folder, torch_cpu()).model_dump(mode="json")
        base["training"] |= {"trackers": ["none"], "max_minutes": None, "max_steps": steps + 1}
        base["training"] |= {"heldout_steps": 10**6, "preview_steps": 10**6, "keep_best": False}
        trainer = Trainer(load_config(base, words))
        rows, size = len(trainer.data.trained.rows), trainer.config.training.micro_batch_size
        warm = -(-rows // size) + 2  # each picture has been decoded by then
        trainer.train()
    (begin, before), (end, after) = marks
    shares = {name: (after[name] - before[name]) / (end - begin) for name in PARTS}
    shares["clipping and the optimizer"] -= shares["forward and backward"]
    return {
        "a step in seconds": (end - begin) / (steps - warm),
        **shares,
        "the rest": 1 - sum(shares.values()),
    }


def torch_cpu() -> Any:
    import torch

    return torch.device("cpu")


def main() -> None:
    if len(sys.argv) > 1:
        steps = int(sys.argv[1])
        found = where_time_goes(sys.argv[2:], steps) if steps else measure(sys.argv[2:])
        print(json.dumps(found))
        return
    best: dict[str, dict[str, float]] = {}
    for _ in range(2):
        for name, words in VARIANTS.items():
            found = asked(0, words)
            if name not in best or found["step"] < best[name]["step"]:
                best[name] = found
    first = best["as it is"]["step"]
    for name, found in best.items():
        found["ratio"] = round(found["step"] / first, 2)
        print(f"{name:36s} {found['step'] * 1000:7.0f} ms  x {found['ratio']:.2f}")
    loops = {name: asked(steps, words) for name, (steps, words) in LOOPS.items()}
    for name, shares in loops.items():
        said = ", ".join(
            f"{part} {share:.1%}" for part, share in shares.items() if "seconds" not in part
        )
        print(f"{name}: {shares['a step in seconds']:.3f} s a step: {said}")
    RESULTS.parent.mkdir(exist_ok=True)
    kept = {"date": datetime.date.today().isoformat(), "variants": best, "loops": loops}
    RESULTS.write_text(json.dumps(kept, indent=1), encoding="utf-8")


def asked(steps: int, words: list[str]) -> dict[str, float]:
    """What a process of its own finds."""
    command = [sys.executable, __file__, str(steps), *words]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


if __name__ == "__main__":
    main()
