"""`--log-level debug`: shapes and ranges all the way through the model, without a print."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

log = logging.getLogger("limner")


def log_shapes(model: nn.Module) -> None:
    """Log what goes into and comes out of each part of the model, at every forward pass."""
    for name, module in model.named_modules():
        if name.count(".") <= 2 and not isinstance(module, nn.ModuleList):
            module.register_forward_hook(_hook(name or "model"))


def _hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_: nn.Module, inputs: Any, output: Any) -> None:
        before, after = ", ".join(map(_describe, inputs)), _describe(output)
        log.debug("%s: %s -> %s", name, before, after)

    return hook


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        low, high = value.detach().min(), value.detach().max()
        kind = str(value.dtype).removeprefix("torch.")
        return f"{list(value.shape)} {kind} from {float(low):.3g} to {float(high):.3g}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_describe, value))})"
    return type(value).__name__
