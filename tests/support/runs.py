"""Short for what many tests of a run do: train it, and read what it said."""

from pathlib import Path
from typing import Any

from limner.config import Config
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
