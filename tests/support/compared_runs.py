"""Runs beside each other: what differs between two of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from limner.checkpoint.folder import load_tensors
from limner.config import Config
from limner.training.monitor.run_log import read_log
from limner.training.trainer import Trainer


class Interrupted(Exception):
    """The power went."""


def run(config: Config, resume: str | Path | None = None, steps: int | None = None) -> Path:
    """Trains to the end, or until the power goes in the update after `steps`."""
    trainer = Trainer(config, resume=resume)
    update, done = trainer.step, []

    def step() -> Any:
        if len(done) == steps:
            raise Interrupted
        done.append(True)
        return update()

    trainer.step = step  # type: ignore[method-assign]
    if steps is None:
        trainer.train()
    else:
        with pytest.raises(Interrupted):
            trainer.train()
    return trainer.folder


def elsewhere(config: Config, name: str, **training: Any) -> Config:
    folder = str(Path(config.training.output_dir).with_name(name))
    settings = config.training.model_copy(update={"output_dir": folder, **training})
    return config.model_copy(update={"training": settings})


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """A nested dictionary or list, flattened: {"adamw/state/0/step": ...}."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, inner in items for k, v in leaves(inner, f"{name}/{key}").items()}
    return {name: value}


def contents(checkpoint: Path) -> dict[str, Any]:
    """All that a checkpoint holds of the run, without its folder's name and its time."""
    state = json.loads((checkpoint / "training_state.json").read_text(encoding="utf-8"))
    del state["seconds"]
    averaged = checkpoint / "ema.safetensors"
    return leaves(
        {
            "model": load_tensors(checkpoint / "model.pt"),
            "averaged": load_file(averaged) if averaged.is_file() else None,
            "optimizer": load_tensors(checkpoint / "optimizer.pt"),
            "tokenizer": (checkpoint / "tokenizer.json").read_text(encoding="utf-8"),
            "state": state,
        }
    )


def differing(first: Path, second: Path) -> list[str]:
    a, b = contents(first), contents(second)
    assert a.keys() == b.keys()
    return [
        name
        for name, value in a.items()
        if not (
            torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name]
        )
    ]


def logged(folder: Path) -> list[dict[str, Any]]:
    """The log's figures, without what depends on the clock."""
    clock = ("seconds", "images_per_second", "mfu")
    return [
        {k: v for k, v in event.items() if k not in clock}
        for event in read_log(folder / "log.jsonl")
        if event["kind"] not in ("event", "plan")
    ]
