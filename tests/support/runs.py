"""Short for what many tests of a run do: train it, and read what it said."""

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest

from limner.apps import estimate
from limner.config import Config
from limner.training import memory_probe, probe, quick_probe
from limner.training.monitor.run_log import read_log
from limner.training.trainer import Trainer


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_log(folder / "log.jsonl") if event["kind"] == kind]


def messages(folder: Path) -> list[str]:
    return [event["message"] for event in events(folder, "event")]


def trained(config: Config) -> Trainer:
    trainer = Trainer(config)
    trainer.train()
    return trainer


def measure_here(patch: pytest.MonkeyPatch) -> None:
    """`limner estimate` measures in this process, which has imported all that it needs; that a
    process of its own does it is tests/runs/test_estimate.py's."""

    def measured(config: Config) -> dict[str, Any]:
        with contextlib.redirect_stdout(io.StringIO()):
            return probe.measure(config)

    def measured_quickly(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
        with contextlib.redirect_stdout(io.StringIO()):
            found = quick_probe.measure(config)
        return found["small"], found["large"]

    patch.setattr(memory_probe, "probe", measured)
    patch.setattr(estimate, "probe_quickly", measured_quickly)
