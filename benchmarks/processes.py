"""Throughput of one process with all cores against several processes that share them.

    python benchmarks/processes.py                   # 2 processes, the default model
    python benchmarks/processes.py --processes 4 --turns 5

The same run (model, effective batch, pictures) three ways: one process with as many threads as
there are processes otherwise; several with one thread each, which average their gradients after the
backward pass; and several with a sharded model. Rounds alternate; reported are the median and every
round. It also reports the cost of averaging gradients: the bytes that a process sends per update,
and the share of an update spent on it, including waiting for the slower process. That share is the
most that averaging during the backward pass (DistributedDataParallel) could save. Results:
benchmarks/results/processes.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "processes.json"


def measure(request: dict[str, Any]) -> None:
    """One way, in this process (and in others like it): its figures into `request["told"]`."""
    import torch

    from limner.config import load_config
    from limner.distributed import processes as parallel
    from limner.training import train_step
    from limner.training.compiling import compile_model
    from limner.training.trainer import Trainer

    torch.set_num_threads(request["threads"])
    given = {"bytes": 0, "seconds": 0.0}
    average, reduce = train_step.average_gradients, parallel._all_reduce

    def timed_average(parameters: Any) -> None:
        start = time.perf_counter()
        before = given["bytes"]
        parallel._all_reduce = counted
        average(parameters)
        parallel._all_reduce = reduce
        given["seconds"] = time.perf_counter() - start
        given["bytes"] -= before

    def counted(tensor: Any, **how: Any) -> None:
        given["bytes"] += tensor.numel() * tensor.element_size()
        reduce(tensor, **how)

    train_step.average_gradients = timed_average
    trainer = Trainer(load_config(None, request["settings"]))
    trainer.batches.restart()

    compile_model(trainer.run)
    images = trainer.config.training.effective_batch_size
    assert images
    steps, averaging = [], []
    for step in range(request["first"] + request["steps"]):
        start = time.perf_counter()
        trainer.run.set_learning_rate()
        trainer.step()
        trainer.run.update_ema()
        if step >= request["first"]:
            steps.append(time.perf_counter() - start)
            averaging.append(given["seconds"])
    trainer.batches.__exit__()
    trainer.run.accelerator.wait_for_everyone()
    if trainer.run.accelerator.is_main_process:
        seconds = statistics.median(steps)
        found = {
            "pictures_per_second": images / seconds,
            "bytes_averaged": given["bytes"],
            "share_averaging": statistics.median(averaging) / seconds,
            "parameters": sum(p.numel() for p in trainer.averaged.parameters()),
        }
        Path(request["told"]).write_text(json.dumps(found), encoding="utf-8")


def turn(processes: int, threads: int, sharding: str, given: argparse.Namespace) -> dict[str, Any]:
    """One way, started by torchrun as a run is."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told.json"
        settings = [
            "data.dataset_name=emoji",
            "data.subset=demo",
            f"training.output_dir='{folder}'",
            f"training.effective_batch_size={given.batch}",
            f"training.batch_size={given.batch // processes}",
            f"training.sharding={sharding}",
            f"training.compile_model={str(not given.eager).lower()}",
            "training.num_workers=0",
            "training.max_steps=100000",
            "training.trackers=[none]",
            *given.settings,
        ]
        request = {
            "threads": threads,
            "settings": settings,
            "first": given.first,
            "steps": given.steps,
            "told": str(told),
        }
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*launcher, f"--nproc_per_node={processes}", __file__, "--one"]
        subprocess.run([*command, json.dumps(request)], check=True)
        return json.loads(told.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32, help="pictures per update, in all")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="that count, per turn")
    parser.add_argument("--first", type=int, default=3, help="steps before those that count")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", help="section.key=value")
    given = parser.parse_args()
    if given.one:
        measure(json.loads(given.one))
        return
    count = given.processes
    ways = {
        f"1 process, {count} threads": (1, count, "none"),
        f"{count} processes, 1 thread each": (count, 1, "none"),
        f"{count} processes, 1 thread each, in shards": (count, 1, "fsdp"),
    }
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for _ in range(given.turns):
        for name, way in ways.items():
            turns[name].append(turn(*way, given))
            print(f"{name}: {turns[name][-1]['pictures_per_second']:.2f} pictures/s", flush=True)
    import torch

    found: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "batch": given.batch,
        "compiled": not given.eager,
        "settings": given.settings,
    }
    for name, each in turns.items():
        speeds = [t["pictures_per_second"] for t in each]
        found[name] = {
            "pictures_per_second": round(statistics.median(speeds), 2),
            "turns": [round(s, 2) for s in speeds],
            "parameters": each[0]["parameters"],
        }
        if ways[name][0] > 1 and ways[name][2] == "none":  # shards average in the backward pass
            share = statistics.median(t["share_averaging"] for t in each)
            found[name]["bytes_averaged_per_update"] = each[0]["bytes_averaged"]
            found[name]["share_averaging"] = round(share, 4)
    given.results.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
