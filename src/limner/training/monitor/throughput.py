"""FLOPs of a training step, and the peak of the device, for the MFU."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

if TYPE_CHECKING:
    from limner.training.run import Run


def matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """The measured peak of a square matrix multiplication on this device, in FLOP/s.

    Sizes grow, as larger products reach more, while there is time for six of them.

    Args:
        seconds: the approximate upper bound on the time this takes, on any device and in any
            precision.
    """
    largest = 8192 if device.type == "cuda" else 2048
    began, best, side = time.perf_counter(), 0.0, 128
    while side <= largest:
        a = torch.randn(side, side, device=device).to(dtype)
        left = seconds - (time.perf_counter() - began)
        if best and 6 * 2 * side**3 / best > left:
            break
        for _ in range(6):
            with synchronised(device):
                start = time.perf_counter()
                a @ a
            best = max(best, 2 * side**3 / (time.perf_counter() - start))
        side *= 2
    return best


@contextlib.contextmanager
def synchronised(device: torch.device) -> Iterator[None]:
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def training_flops(model: nn.Module, inputs: tuple[Any, ...]) -> float:
    """FLOPs of training on one picture: those of a forward pass, times three to include the
    backward.

    Args:
        inputs: of one picture, as the model takes them.
    """
    # The only fused attention that torch has a formula for but does not count.
    on_processors = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    formula = {on_processors: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
    counter = FlopCounterMode(display=False, custom_mapping=formula)
    with torch.no_grad(), counter:
        model(*inputs)
    return 3.0 * counter.get_total_flops()


def flops_per_picture(run: Run) -> float:
    """The same of a run, whose averaged model is on its device."""
    space = run.parts.autoencoder
    side = run.config.data.image_size // space.downsampling
    image = torch.zeros(1, space.channels, side, side, device=run.device)
    text = run.inputs.words.encode([""]).to(run.device)
    flops = training_flops(run.averaged, (image, torch.ones(1, device=run.device), text))
    # Frozen matrices need no weight gradients.
    return flops if run.config.lora.rank is None else flops * 2 / 3
