"""Trains one recipe with one seed for its minutes of CPU time, and measures it at its marks.

It is its own process and can be stopped (Ctrl-C, SIGTERM) and resumed.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# One thread each, so that as many runs as there are cores disturb one another least, and so that
# minutes of processor time are minutes.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

import torch
from quality import measure
from recipes import BASE, Recipe

from limner import __version__
from limner.config import load_config
from limner.training import budget
from limner.training.trainer import Trainer


def processor_seconds() -> float:
    """Of this process and of the compilers that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class MarkedTrainer(Trainer):
    """Keeps the weights of its marks, averaged and not."""

    marks: list[float]

    def step(self) -> Any:
        while self.marks and self.state.seconds >= 60 * self.marks[0]:
            self.keep(self.marks.pop(0))
        return super().step()

    def keep(self, minutes: float) -> None:
        path = self.folder / f"mark-{minutes:g}.pt"
        if not path.exists():
            models = {"averaged": self.averaged, "last": self.model}
            weights = {name: model.state_dict() for name, model in models.items()}
            state = self.state
            about = {"steps": state.step, "images": state.images, "seconds": state.seconds}
            torch.save({"weights": weights, "about": about}, path)


def run(name: str, recipe: Recipe, seed: int, folder: Path, results: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")
    budget.clock = processor_seconds
    if recipe.experiment:
        import experiments

        for experiment in recipe.experiment.split():
            getattr(experiments, experiment)()
    overrides = [
        *recipe.overrides,
        f"training.output_dir={folder}",
        f"training.seed={seed}",
        f"training.max_minutes={recipe.minutes}",
    ]
    trainer = MarkedTrainer(load_config(BASE, overrides))
    began = time.time()
    trainer.marks = sorted(recipe.marks)
    trainer.train()
    trainer.keep(recipe.minutes)
    for mark in [*recipe.marks, recipe.minutes]:
        line = about(name, recipe, seed, trainer) | {"minutes": mark, "wall": time.time() - began}
        kept = torch.load(folder / f"mark-{mark:g}.pt", weights_only=True)
        line |= kept["about"]
        for kind in recipe.weights:
            trainer.averaged.load_state_dict(kept["weights"][kind])
            found = measure(trainer, trainer.averaged)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line | {"weights": kind} | found) + "\n")
            print(name, seed, f"{mark:g} min", kind, found, flush=True)
    shutil.rmtree(folder)


def about(name: str, recipe: Recipe, seed: int, trainer: Trainer) -> dict[str, Any]:
    return {
        "recipe": name,
        "seed": seed,
        "overrides": list(recipe.overrides),
        "budget": recipe.minutes,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "versions": {"limner": __version__, "torch": torch.__version__},
    }


def commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    return found.stdout.strip() or os.environ.get("LIMNER_COMMIT", "")


def machine() -> str:
    model = next(
        (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")),
        "",
    )
    return f"{model or sys.platform}, {os.cpu_count()} cores, one thread a run"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
