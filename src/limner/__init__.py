"""Limner: train your own text-to-image Diffusion Transformer from scratch, on one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limner.config import Config, load_config
    from limner.errors import LimnerError
    from limner.inference.generator import ImageGenerator
    from limner.training.trainer import Trainer

__all__ = ["Config", "ImageGenerator", "LimnerError", "Trainer", "load_config"]
__version__ = "0.1.0"

_HOMES = {
    "Config": "limner.config",
    "ImageGenerator": "limner.inference.generator",
    "LimnerError": "limner.errors",
    "Trainer": "limner.training.trainer",
    "load_config": "limner.config",
}


def __getattr__(name: str) -> Any:
    # Loaded when first asked for: torch alone takes longer than `limner --help` should.
    if name not in _HOMES:
        raise AttributeError(f"module 'limner' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
