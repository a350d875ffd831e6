"""Trackers that are not installed, as modules that note what they are told."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Calls = list[tuple[str, tuple[Any, ...], dict[str, Any]]]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Calls]:
    def install(name: str, **real: Any) -> Calls:
        calls: Calls = []
        module = types.ModuleType(name)
        module.__getattr__ = lambda key: getattr(Recorder(calls), key)  # type: ignore[method-assign]
        for key, value in real.items():
            setattr(module, key, value)
        monkeypatch.setitem(sys.modules, name, module)
        return calls

    for variable in ("WANDB_API_KEY", "WANDB_MODE", "NETRC", "COMET_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    return install


class Recorder:
    """Stands for a tracker's package or run: any call is recorded, and returns another of these."""

    def __init__(self, calls: Calls, name: str = "") -> None:
        self.__dict__.update(calls=calls, name=name)

    def __getattr__(self, name: str) -> Recorder:
        return Recorder(self.calls, f"{self.name}.{name}".lstrip("."))

    def __call__(self, *args: Any, **kwargs: Any) -> Recorder:
        self.calls.append((self.name, args, kwargs))
        return Recorder(self.calls, self.name.replace("init", "run"))
