"""`--log-level debug`: log tensor shapes, value ranges, and timings throughout the model."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


def log_shapes(model: nn.Module) -> None:
    """Log the inputs, outputs, and time in milliseconds (that of logging excluded) of each module
    at every forward pass. The computation is unchanged."""
    clock = Clock()
    for name, module in model.named_modules():
        if name.count(".") <= 2 and not isinstance(module, nn.ModuleList):
            Told(name or "model", clock).watch(module)


class Clock:
    """A clock that excludes the time spent on logging nested modules."""

    def __init__(self) -> None:
        self.telling = 0.0

    def now(self, values: Any) -> float:
        """Synchronises the accelerator first, because it works asynchronously."""
        tensors = values if isinstance(values, tuple) else (values,)
        if any(isinstance(value, Tensor) and value.device.type == "cuda" for value in tensors):
            torch.cuda.synchronize()
        elif any(isinstance(value, Tensor) and value.device.type == "mps" for value in tensors):
            torch.mps.synchronize()
        return time.perf_counter() - self.telling


class Told:
    """The hooks of one module."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name, self.clock = name, clock
        self.started: list[float] = []  # of calls in progress: checkpointing calls a module again

    def watch(self, module: nn.Module) -> None:
        module.register_forward_pre_hook(self.before)
        module.register_forward_hook(self.after)

    def before(self, _: nn.Module, inputs: Any) -> None:
        self.started.append(self.clock.now(inputs))

    def after(self, _: nn.Module, inputs: Any, output: Any) -> None:
        ended = self.clock.now(output)
        taken = ended - self.started.pop()
        before, after = ", ".join(map(_describe, inputs)), _describe(output)
        log.debug("%s: %s -> %s, %.2f ms", self.name, before, after, 1000 * taken)
        self.clock.telling += time.perf_counter() - self.clock.telling - ended


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        kind = f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
        if value.numel() == 0:
            return kind
        kept = value.detach()
        low, high = kept.min(), kept.max()
        said = f"{kind} from {float(low):.3g} to {float(high):.3g}"
        if not kept.is_floating_point():
            return said
        wrong = int((~kept.isfinite()).sum())
        return f"{said} mean {float(kept.float().mean()):.3g}" + (
            f" ({wrong} NaN or infinite)" if wrong else ""
        )
    if isinstance(value, tuple):
        return f"({', '.join(map(_describe, value))})"
    return type(value).__name__
