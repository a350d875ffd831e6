"""Training speed on a machine that other programs use as well.

    python benchmarks/shared_machine.py                       # the table, about ten minutes
    python benchmarks/shared_machine.py --spin 300 1000 3000  # other spin counts, too
    python benchmarks/shared_machine.py --turns 3

The demo's step (8.1M parameters, 64 tokens, batch 32, all cores) under several settings of OpenMP,
each three times: alone, beside a program that keeps one core busy, and beside a second such run. A
thread of OpenMP that waits for the others spins; while a program of somebody else's has a core, the
others wait for the thread that is not running, and spin on the cores that are. Fair is what the
machine's scheduler would give to a program that does not spin: beside one busy process on c cores
c / (c + 1) of the speed alone, beside a second run half of it.

Settings alternate; reported is the median. The losses of the first steps are compared; for a given
number of threads they are bit-identical. Results: benchmarks/results/shared_machine.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "shared_machine.json"
SPINNING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
WARM_UP = 8
"""Steps: compiling is over by then."""
CONDITIONS = ("alone", "beside a busy program", "beside a second run")
MOST_LOST, LEAST_SHARE = 0.05, 0.5
"""What the default promises: of the best speed alone it loses at most so much, and keeps at least
so much of a fair share in company."""


def train(seconds: float, threads: int | None) -> None:
    """A process of its own: says that it is warm, waits for a word, and trains for so long."""
    import torch

    from limner import console, memory
    from limner.apps.demo import demo_config
    from limner.training.compiling import compile_model
    from limner.training.trainer import Trainer

    if threads:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        config = demo_config(10, folder, torch.device("cpu"))
        config = config.model_copy(
            update={"training": config.training.model_copy(update={"trackers": ("none",)})}
        )
        trainer = Trainer(config)
        memory.keep_freed_memory()
        console.inform_on_stderr()
        compile_model(trainer.run)
        trainer.batches.restart()
        trainer.run.set_learning_rate()
        losses = [trainer.step()[0].loss.hex() for _ in range(WARM_UP)]
        print(json.dumps({"losses": losses, "threads": torch.get_num_threads()}), flush=True)
        sys.stdin.readline()
        began, images = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            trainer.step()
            images += config.training.micro_batch_size
        print(json.dumps({"images_per_second": images / (time.perf_counter() - began)}), flush=True)


BUSY = "n = 0\nwhile True:\n    n += 1"


def measure(
    setting: dict[str, Any], condition: str, seconds: float
) -> tuple[list[str], list[float]]:
    """Losses of the first steps, and images a second of each run."""
    environment = {k: v for k, v in os.environ.items() if k not in SPINNING}
    environment |= setting["environment"]
    command = [sys.executable, __file__, "--train", str(seconds)]
    command += ["--threads", str(setting.get("threads", 0))]
    count = 2 if condition == CONDITIONS[2] else 1
    runs = [
        subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for _ in range(count)
    ]  # fmt: skip
    warm = [answer(run) for run in runs]
    company = []
    if condition == CONDITIONS[1]:
        company.append(subprocess.Popen([sys.executable, "-c", BUSY]))
        time.sleep(1)
    try:
        for run in runs:
            assert run.stdin is not None
            run.stdin.write("go\n")
            run.stdin.flush()
        speeds = [answer(run)["images_per_second"] for run in runs]
    finally:
        for other in company:
            other.kill()
    for run in runs:
        run.wait()
    return warm[0]["losses"], speeds


def answer(run: subprocess.Popen[str]) -> dict[str, Any]:
    assert run.stdout is not None
    while line := run.stdout.readline():
        if line.startswith("{"):
            return dict(json.loads(line))
    raise SystemExit(f"a run ended with {run.wait()}")


def settings_of(spins: list[int], threads: int) -> dict[str, dict[str, Any]]:
    from limner.threads import OPENMP

    found: dict[str, dict[str, Any]] = {
        "as torch has it": {"environment": {}},
        "Limner's default": {"environment": dict(OPENMP)},
        "OMP_WAIT_POLICY=passive": {"environment": {"OMP_WAIT_POLICY": "passive"}},
    }
    for spin in spins:
        found[f"GOMP_SPINCOUNT={spin}"] = {"environment": {"GOMP_SPINCOUNT": str(spin)}}
    if threads > 1:
        found["a thread less"] = {"environment": {}, "threads": threads - 1}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--spin", type=int, nargs="*", default=[], help="spin counts besides")
    parser.add_argument("--only", nargs="*", help="settings whose names hold one of these words")
    parser.add_argument("--train", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(options.train, options.threads or None)
        return
    cores = os.cpu_count() or 1
    settings = settings_of(options.spin, cores)
    if options.only:
        settings = {k: v for k, v in settings.items() if any(w in k for w in options.only)}
    speeds: dict[str, dict[str, list[float]]] = {s: {c: [] for c in CONDITIONS} for s in settings}
    losses: dict[str, list[str]] = {}
    for turn in range(options.turns):
        for name, setting in settings.items():
            for condition in CONDITIONS:
                first, found = measure(setting, condition, options.seconds)
                losses[name] = first
                speeds[name][condition].append(statistics.mean(found))
                print(f"turn {turn + 1}: {name}, {condition}: {found}", flush=True)
    medians = {
        name: {c: statistics.median(values) for c, values in found.items()}
        for name, found in speeds.items()
    }
    table(medians, cores)
    alike = {name: losses[name] for name in settings if "threads" not in settings[name]}
    same = len({tuple(found) for found in alike.values()}) == 1
    print(
        f"losses of {WARM_UP} steps with {cores} threads: {'equal to the bit' if same else alike}"
    )
    RESULTS.write_text(
        json.dumps(
            {
                "date": datetime.date.today().isoformat(),
                "machine": f"{platform.machine()}, {cores} cores",
                "seconds": options.seconds,
                "images_per_second": speeds,
                "same_losses": same,
            },
            indent=1,
        ),
        encoding="utf-8",
    )


def table(medians: dict[str, dict[str, float]], cores: int) -> None:
    alone, busy, second = CONDITIONS
    best = max(found[alone] for found in medians.values())
    fair = {busy: best * cores / (cores + 1), second: best / 2}
    print(f"\n| setting | {alone} | of the best | {busy} | of fair | {second} | of fair |")
    print("|---|---|---|---|---|---|---|")
    for name, found in medians.items():
        cells = [f"{found[alone]:.0f}", f"{found[alone] / best:.2f}"]
        for condition in (busy, second):
            cells += [f"{found[condition]:.0f}", f"{found[condition] / fair[condition]:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")
    if (default := medians.get("Limner's default")) is None:
        return
    lost = 1 - default[alone] / best
    least = min(default[c] / fair[c] for c in (busy, second))
    held = lost <= MOST_LOST and least >= LEAST_SHARE
    print(
        f"\nLimner's default loses {lost:.1%} alone (at most {MOST_LOST:.0%} is promised) and "
        f"keeps {least:.0%} of a fair share in company (at least {LEAST_SHARE:.0%}): "
        f"{'held' if held else 'NOT held'}"
    )


if __name__ == "__main__":
    main()
