"""An autoencoder that is fitted in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limner.apps.autoencoder.fit import Fit

SMALL = [
    "data.num_samples=40",
    "data.image_size=32",
    "autoencoder.base_channels=8",
    "autoencoder.crop=32",
    "autoencoder.batch_size=8",
    "autoencoder.max_minutes=5",
]


SETTINGS = [*SMALL, "autoencoder.max_steps=12", "training.save_steps=4", "optimizer.type=muon"]


def at_step(step: int, do: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something once, when that many updates are done."""
    update = Fit._update

    def interrupted(fit: Fit) -> Any:
        if fit.state.step == step:
            monkeypatch.setattr(Fit, "_update", update)
            do()
        return update(fit)

    monkeypatch.setattr(Fit, "_update", interrupted)


def same(first: Path, second: Path) -> bool:
    names = WEIGHTS, "config.json", "reconstructions.png"
    results = [
        json.loads((folder / "results.json").read_text("utf-8")) for folder in (first, second)
    ]
    for result in results:
        del result["minutes"]
    return results[0] == results[1] and all(
        (first / name).read_bytes() == (second / name).read_bytes() for name in names
    )


WEIGHTS = "diffusion_pytorch_model.safetensors"
