"""Train for an hour with previews, held-out losses, and checkpoints on; watch what the run holds.

    python tests/faults/soak.py --minutes 60

Resident memory of the run and its workers, open files, threads, and processes are taken every ten
seconds; after a warm-up (the first sixth) they must be flat. Prints the figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from limner.apps.demo import demo_config
from limner.checkpoint.locate import checkpoints
from limner.training.monitor.run_log import read_log

EVERY = 10.0  # seconds
FLAT = 0.02
"""Growth of memory over the time after the warm-up that is still called flat, as a share."""


def look(process: psutil.Process) -> dict[str, float]:
    """What a process and those that it started hold now."""
    family = [process, *process.children(recursive=True)]
    return {
        "MiB": sum(p.memory_full_info().uss for p in family) / 2**20,  # shared pages not counted
        "MiB of the main process": process.memory_info().rss / 2**20,
        "files": sum(p.num_fds() if hasattr(p, "num_fds") else p.num_handles() for p in family),
        "threads": sum(p.num_threads() for p in family),
        "processes": len(family),
    }


def soak(minutes: float, folder: Path) -> dict[str, Any]:
    import torch

    config = demo_config(60.0, str(folder / "run"), torch.device("cpu"))
    training = config.training.model_copy(
        update={
            "max_minutes": None,
            "max_steps": 10**7,
            "num_workers": 2,
            "save_steps": 100,
            "heldout_steps": 50,
            "preview_steps": 100,
            "trackers": ("tensorboard",),
        }
    )
    (folder / "run.yaml").write_text(
        config.model_copy(update={"training": training}).to_yaml(), encoding="utf-8"
    )
    command = [sys.executable, "-m", "limner", "train", "--config", str(folder / "run.yaml")]
    samples: list[dict[str, float]] = []
    with (folder / "said").open("w") as said:
        run = psutil.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + minutes * 60
            while time.monotonic() < end and run.poll() is None:
                time.sleep(EVERY)
                samples.append(look(run))
            alive = run.poll() is None
            run.terminate()  # asked to stop, it saves and leaves
            code = run.wait(120)
        finally:  # an error would be hidden by that of removing the folder it goes on writing in
            run.kill()
    events = read_log(folder / "run" / "log.jsonl")
    after = samples[len(samples) // 6 :]
    quarter = max(1, len(after) // 4)
    figures: dict[str, Any] = {
        "minutes": round(len(samples) * EVERY / 60, 1),
        "exit code": code,
        "steps": max((e["step"] for e in events), default=0),
        "checkpoints written": max((e["step"] for e in events), default=0) // 100,
        "previews": len(list((folder / "run" / "previews").glob("*.png"))),
        "kept": [path.name for path in checkpoints(folder / "run")],
    }
    for name in samples[0]:
        first = statistics.median(s[name] for s in after[:quarter])
        last = statistics.median(s[name] for s in after[-quarter:])
        figures[name] = {
            "first quarter after the warm-up": round(first, 1),
            "last quarter": round(last, 1),
            "most": round(max(s[name] for s in after), 1),
        }
    memory = figures["MiB"]
    grown = memory["last quarter"] / memory["first quarter after the warm-up"] - 1
    counts = [figures[name] for name in ("files", "threads", "processes")]
    figures["flat"] = (
        alive
        and code == 75
        and grown < FLAT
        and all(c["last quarter"] <= c["first quarter after the warm-up"] for c in counts)
    )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    with tempfile.TemporaryDirectory() as folder:
        figures = soak(parser.parse_args().minutes, Path(folder))
    print(json.dumps(figures, indent=1))
    if not figures["flat"]:
        raise SystemExit("what the run holds is not flat")


if __name__ == "__main__":
    main()
