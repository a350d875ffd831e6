"""Limner: train your own text-to-image Diffusion Transformer from scratch, on one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limner import console as console
from limner.version import __version__ as __version__

if TYPE_CHECKING:
    from limner.checkpoint.inherit import load_run_config as load_config
    from limner.config import Config
    from limner.errors import LimnerError
    from limner.inference.generator import ImageGenerator
    from limner.training.trainer import Trainer

__all__ = ["Config", "ImageGenerator", "LimnerError", "Trainer", "load_config"]

_HOMES = {
    "Config": ("limner.config", "Config"),
    "ImageGenerator": ("limner.inference.generator", "ImageGenerator"),
    "LimnerError": ("limner.errors", "LimnerError"),
    "Trainer": ("limner.training.trainer", "Trainer"),
    "load_config": ("limner.checkpoint.inherit", "load_run_config"),
}


def __getattr__(name: str) -> Any:
    # Loaded when first asked for: torch alone takes longer than `limner --help` should.
    if name not in _HOMES:
        raise AttributeError(f"module 'limner' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
