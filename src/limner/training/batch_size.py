"""Settle `training.batch_size: auto`: the largest micro-batch that fits into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from limner.config import Config
from limner.device import choose_device
from limner.errors import LimnerError
from limner.memory import free_memory
from limner.training.memory_probe import MARGIN, images_in_memory, line, probe_sizes

MOST = 256
"""The most pictures per update that `auto` chooses: larger batches learn less per picture."""
SMALL, LARGE = 4, 8
"""The two micro-batch sizes whose memory is measured: it grows linearly with the size."""


def settle_batch(
    config: Config, processes: int, fits: Callable[[Config], int] | None = None
) -> Config:
    """Resolve the micro-batch size and the gradient accumulation of a configuration.

    Args:
        fits: returns how many pictures fit into memory at once; None: measure it.

    Raises:
        LimnerError: the effective batch cannot be divided as asked.
    """
    settings = config.training
    whole = settings.effective_batch_size
    if whole and whole % processes:
        raise LimnerError(
            f"training.effective_batch_size: {whole} is not a multiple of the number of processes "
            f"({processes}); use a multiple"
        )
    size = settings.batch_size
    if size == "auto":
        most = whole // processes if whole else MOST
        room = min(most, (fits or images_that_fit)(config))
        size = 2 ** (room.bit_length() - 1)
        while most % size:
            size //= 2
    changes: dict[str, int] = {"batch_size": size}
    if whole:
        if whole % (size * processes):
            raise LimnerError(
                f"training.effective_batch_size: {whole} is not a multiple of training.batch_size "
                f"({size})"
                + (f" x {processes} processes" if processes > 1 else "")
                + "; change one of the two, or set training.batch_size=auto"
            )
        changes["gradient_accumulation_steps"] = whole // (size * processes)
    return config.model_copy(update={"training": settings.model_copy(update=changes)})


def images_that_fit(config: Config) -> int:
    """The largest micro-batch that fits, measured by two short runs in subprocesses. Raises
    LimnerError if not even one picture fits."""
    free = free_memory(choose_device(config.training.device))
    return fitting(config, free, *probe_sizes(config, (LARGE, SMALL), free))


def fitting(config: Config, free: int, small: dict[str, Any], large: dict[str, Any]) -> int:
    """The same by two measurements of `limner.training.memory_probe`, with so many free bytes."""
    fixed, per_image = line(small, large, "peak_bytes")
    fixed += images_in_memory(config, large["trained"] + large["held_out"])
    fits = int((free * MARGIN - fixed) / per_image) if per_image else MOST
    if fits < 1:
        raise LimnerError(
            "training.batch_size: even a batch of one picture needs "
            f"{(fixed + per_image) / 2**30:.2f} GiB, and {free / 2**30:.2f} GiB are free; use a "
            "smaller model or training.gradient_checkpointing=true (see limner estimate)"
        )
    return fits
