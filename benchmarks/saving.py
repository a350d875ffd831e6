"""The cost of a checkpoint every minute with the default model: `python benchmarks/saving.py`.

Trains for some minutes on the built-in shapes at 64 pixels (384 wide, 8 layers, 256 tokens, batch
32) and saves every 60 seconds. The cost is the time that the training loop waits (for the copy of
the weights, and for the previous checkpoint if that is still being written) plus the slowdown of
steps while the background thread writes, syncs, and verifies, relative to the median of the other
steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from limner.checkpoint.folder import save_checkpoint
from limner.checkpoint.saver import Saver
from limner.config import load_config
from limner.device import describe
from limner.training.compiling import compile_model
from limner.training.saving import contents_of
from limner.training.trainer import Trainer

EVERY = 60.0  # seconds


def measure(minutes: float, folder: Path) -> dict[str, Any]:
    config = load_config(
        {
            "data": {"dataset_name": "shapes", "num_samples": 2000},
            "training": {"output_dir": str(folder), "trackers": ["none"], "num_workers": 0},
        }
    )
    trainer = Trainer(config)
    compile_model(trainer.run)
    trainer.batches.restart()
    trainer.run.set_learning_rate()
    for _ in range(5):
        trainer.step()

    quiet, writing, stalls = list[float](), list[float](), list[float]()
    with Saver(3, lambda: None, True) as saver:
        began, due, number = time.perf_counter(), EVERY / 2, 0
        while (now := time.perf_counter() - began) < minutes * 60:
            if now >= due:
                number, due = number + 1, due + EVERY
                trainer.state.step = number
                start = time.perf_counter()
                saver.save(folder / f"checkpoint-{number}", contents_of(trainer.run))
                stalls.append(time.perf_counter() - start)
            busy = saver.pending is not None  # so that the step in which it ends counts, too
            start = time.perf_counter()
            trainer.step()
            (writing if busy else quiet).append(time.perf_counter() - start)
            saver.poll()
        total = time.perf_counter() - began
    usual = statistics.median(quiet)
    slower = sum(seconds - usual for seconds in writing)
    start = time.perf_counter()
    path = save_checkpoint(folder / "checkpoint-0", contents_of(trainer.run))
    waited = time.perf_counter() - start
    return {
        "machine": describe(trainer.run.device),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "checkpoint_mb": round(sum(f.stat().st_size for f in path.iterdir()) / 1e6, 1),
        "saves": len(stalls),
        "seconds": round(total, 1),
        "step_seconds": round(usual, 3),
        "loop_held_up_per_save": round(statistics.mean(stalls), 3),
        "steps_while_writing": len(writing),
        "slower_steps_per_save": round(slower / len(stalls), 3),
        "share_of_the_time": round((sum(stalls) + slower) / total, 4),
        "seconds_if_training_waited": round(waited, 3),
        "share_if_training_waited": round(waited / EVERY, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=6)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        found = {"date": date.today().isoformat()}
        found |= measure(parser.parse_args().minutes, Path(folder))
    print(text := json.dumps(found, indent=1))
    (Path(__file__).parent / "results" / "saving.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
