"""What a training step costs on this machine, and what each measure against waste saves.

    python benchmarks/step_cost.py

Each variant is the demo's training step in a process of its own, the best of two turns (the
machine may be busy in one); the ratio is against the first. Results are kept in
benchmarks/results/step_cost.json.
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


def measure(words: list[str]) -> dict[str, float]:
    """Seconds of a step (median of 20 after 5), and what the processor's matrix product reaches."""
    import torch

    from limner import device as devices
    from limner.config import load_config
    from limner.demo import demo_config
    from limner.models import attention
    from limner.training.trainer import Trainer

    if "flash" in words:
        attention.SHORT = 0
    if "give-back" in words:
        devices.keep_freed_memory = lambda: None
    overrides = [word for word in words if "=" in word]
    with tempfile.TemporaryDirectory() as folder:
        base = demo_config(10.0, folder, torch.device("cpu")).model_dump(mode="json")
        base["training"]["trackers"] = ["none"]
        trainer = Trainer(load_config(base, overrides))
        trainer.compile(_Silent())  # type: ignore[arg-type]
        trainer.batches, seconds = trainer.load(), []
        for _ in range(25):
            start = time.perf_counter()
            trainer.step()
            seconds.append(time.perf_counter() - start)
    peak = devices.matmul_peak(torch.device("cpu"), trainer.dtype)
    return {"step": statistics.median(seconds[5:]), "peak_gflops": peak / 1e9}


class _Silent:
    def event(self, message: str) -> None:
        print(message, file=sys.stderr)


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[2:])))
        return
    best: dict[str, dict[str, float]] = {}
    for _ in range(2):
        for name, words in VARIANTS.items():
            command = [sys.executable, __file__, "--measure", *words]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found = json.loads(output.splitlines()[-1])
            if name not in best or found["step"] < best[name]["step"]:
                best[name] = found
    first = best["as it is"]["step"]
    for name, found in best.items():
        found["ratio"] = round(found["step"] / first, 2)
        print(f"{name:36s} {found['step'] * 1000:7.0f} ms  x {found['ratio']:.2f}")
    RESULTS.parent.mkdir(exist_ok=True)
    date = datetime.date.today().isoformat()
    RESULTS.write_text(json.dumps({"date": date, "variants": best}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
