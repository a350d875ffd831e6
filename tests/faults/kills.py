"""Kill a training run at random moments, again and again, and see that nothing was lost.

    python tests/faults/kills.py --kills 100                  one process
    python tests/faults/kills.py --kills 20 --processes 2     two, of which one is killed
    python tests/faults/kills.py --command export             another command (kills_of_commands.py)

Each life of the run is a process that is started with the same command as the first and ends by
SIGKILL (TerminateProcess on Windows), half of them while a checkpoint is being written. In the end
weights, averages, optimizer states, counters, and logged losses are compared, to the bit, with
those of a run that was left alone. Prints the figures as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from limner.checkpoint.folder import load_tensors
from limner.checkpoint.locate import checkpoints
from limner.config import Config, load_config
from limner.training.monitor import throughput
from limner.training.monitor.run_log import read_log
from limner.training.trainer import Trainer

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from processes import fork_context, free_port, none_left
from tiny import TINY

COMMANDS = ("train-autoencoder", "prepare", "precompute", "export", "caption")
"""Of kills_of_commands.py."""
CLOCK = ("seconds", "images_per_second", "mfu")
"""Logged figures that no two runs share."""


def start(config_file: Path, processes: int, resume: str | None = None) -> list[BaseProcess]:
    """The processes of a run, on their way."""
    context = fork_context("limner.data.builtin.shapes")
    port = free_port()
    lives = []
    for rank in range(processes):
        life = context.Process(target=live, args=(str(config_file), rank, processes, port, resume))
        life.start()
        lives.append(life)
    return lives


def live(config_file: str, rank: int, processes: int, port: int, resume: str | None) -> None:
    """What `limner train --config FILE` does, but for the report at the end."""
    if processes > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "OMP_NUM_THREADS": "1",  # else accelerate gives each process all cores
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    if "fork" in multiprocessing.get_all_start_methods():
        # As in any program; else the loader's workers would be started as this process was.
        multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        throughput.matmul_peak = lambda device, dtype: 1e12
        Trainer(load_config(config_file), resume=resume).train()


def uninterrupted(config: Config, processes: int) -> float:
    """Run it to its end; the seconds that took."""
    began = time.monotonic()
    to_their_end(start(written(config), processes), "the uninterrupted run")
    return time.monotonic() - began


def to_their_end(lives: list[BaseProcess], which: str) -> None:
    """Wait for all processes of a run; if one fails end the others, and raise SystemExit."""
    with none_left(*lives):
        for life in lives:
            life.join()
            if life.exitcode != 0:
                raise SystemExit(f"{which} ended with {life.exitcode}")


def killed(config: Config, kills: int, processes: int, seed: int, longest: float) -> dict[str, Any]:
    """Run it to its end through as many deaths; what happened.

    Args:
        longest: seconds after which a life that is to die at random has died.
    """
    choose = random.Random(seed)
    folder = Path(config.training.output_dir)
    config_file = written(config)
    found: dict[str, Any] = {"kills": 0, "while saving": 0, "lives without a new checkpoint": 0}
    steps = []
    for _ in range(kills):
        before = _newest(folder)
        lives = start(config_file, processes)
        aimed = choose.random() < 0.5
        with none_left(*lives):
            if processes > 1:  # one killed before they have met leaves the other waiting there
                _wait_until_they_met(folder / "log.jsonl", time.time(), lives)
            deadline = time.monotonic() + choose.uniform(0.05, longest)
            while time.monotonic() < deadline and all(life.is_alive() for life in lives):
                if aimed and _saving(folder) and _newest(folder) > before:
                    time.sleep(choose.uniform(0, 0.02))
                    break
                time.sleep(0.001)
            choose.choice(lives).kill()
            for life in lives:
                life.join(60)
                if life.is_alive():
                    raise SystemExit("a process went on alone after another of its run was killed")
        if any(life.exitcode == 0 for life in lives):
            break  # it was done before it could be killed
        found["kills"] += 1
        found["while saving"] += bool(_saving(folder))
        found["lives without a new checkpoint"] += _newest(folder) == before
        steps.append(_newest(folder))
    to_their_end(start(config_file, processes), "the last life")
    found["checkpoints at the kills"] = [steps[0], steps[-1]] if steps else []
    return found


def _wait_until_they_met(log: Path, since: float, lives: list[BaseProcess]) -> None:
    deadline = time.monotonic() + 60
    while not (log.is_file() and log.stat().st_mtime > since) and time.monotonic() < deadline:
        if not all(life.is_alive() for life in lives):
            raise SystemExit("a process ended by itself before the run began")
        time.sleep(0.01)


def differences(first: Path, second: Path) -> list[str]:
    """What is not the same, to the bit, in the last checkpoints and in the logs of two runs."""
    names = [f"last checkpoint {checkpoints(folder)[-1].name}" for folder in (first, second)]
    different = [] if names[0] == names[1] else names
    a, b = (_leaves(_contents(checkpoints(folder)[-1])) for folder in (first, second))
    different += sorted(a.keys() ^ b.keys())
    different += [name for name in a.keys() & b.keys() if not _equal(a[name], b[name])]
    if _logged(first) != _logged(second):
        different.append("log.jsonl")
    return different


def _logged(folder: Path) -> list[dict[str, Any]]:
    events = [e for e in read_log(folder / "log.jsonl") if e["kind"] in ("train", "heldout")]
    return [{k: v for k, v in event.items() if k not in CLOCK} for event in events]


def _contents(checkpoint: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    state = json.loads((checkpoint / "training_state.json").read_text(encoding="utf-8"))
    del state["seconds"]
    return {
        "model": load_tensors(checkpoint / "model.pt"),
        "averaged": load_file(checkpoint / "ema.safetensors"),
        "optimizer": load_tensors(checkpoint / "optimizer.pt"),
        "state": state,
    }


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, inner in items for k, v in _leaves(inner, f"{name}/{key}").items()}
    return {name: value}


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def _newest(folder: Path) -> int:
    found = checkpoints(folder)
    return int(found[-1].name.partition("-")[2]) if found else 0


def _saving(folder: Path) -> bool:
    return folder.is_dir() and any(path.name.startswith(".checkpoint") for path in folder.iterdir())


def written(config: Config) -> Path:
    path = Path(config.training.output_dir).with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config.to_yaml(), encoding="utf-8")
    return path


def small_run(folder: Path, steps: int, *overrides: str) -> Config:
    """Everything random is on, two workers load, and a checkpoint is written every few steps."""
    return load_config(
        None,
        [
            *TINY,
            f"training.output_dir='{folder}'",
            f"training.max_steps={steps}",
            "training.save_steps=5",
            "training.logging_steps=5",
            "training.heldout_steps=50",
            "training.caption_dropout=0.3",
            "training.gradient_accumulation_steps=2",
            "training.num_workers=2",
            "model.dropout=0.1",
            "data.horizontal_flip=0.5",
            *overrides,
        ],
    )


def harness(
    folder: Path, kills: int, processes: int, seed: int, steps: int, longest: float
) -> dict[str, Any]:
    whole = small_run(folder / "whole", steps)
    broken = small_run(folder / "broken", steps)
    seconds = uninterrupted(whole, processes)
    began = time.monotonic()
    found = killed(broken, kills, processes, seed, longest)
    return {
        "processes": processes,
        "steps": steps,
        **found,
        "seconds uninterrupted": round(seconds, 1),
        "seconds with kills": round(time.monotonic() - began, 1),
        "different": differences(folder / "whole", folder / "broken"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--command", choices=COMMANDS, help="another than train")
    parser.add_argument("--kills", type=int, help="default: 100 of train, 20 of another command")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--longest", type=float, default=3.0, help="seconds of a life at most")
    options = parser.parse_args()
    command, kills = options.__dict__.pop("command"), options.kills
    if command:
        main_of(command, 20 if kills is None else kills, options.seed)
        return
    options.kills = 100 if kills is None else kills
    with tempfile.TemporaryDirectory() as folder:
        found = harness(Path(folder), **vars(options))
    print(json.dumps(found, indent=1))
    if found["different"] or found["kills"] < options.kills:
        raise SystemExit("the run was changed by being killed, or ended before it had been")
    if found["lives without a new checkpoint"] > options.kills / 2 or not found["while saving"]:
        raise SystemExit("most lives were too short to show anything: give a larger --longest")


def main_of(command: str, kills: int, seed: int) -> None:
    from kills_of_commands import harness

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        found = harness(Path(folder), command, kills, seed)
    print(json.dumps(found, indent=1))
    if found["wrong"] or found["different"] or found["left behind"]:
        raise SystemExit("something was lost, changed, or left behind by a kill")


if __name__ == "__main__":
    main()
