"""Measure the memory and time of a run with short runs in subprocesses."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import Any

from limner.config import Config
from limner.distributed.processes import alone
from limner.errors import LimnerError
from limner.messages import plural

MARGIN = 0.9
"""Share of the free memory that a run may use."""


TOO_LARGE = (
    "not even a batch of one picture fits into memory; use a smaller model.hidden_size or "
    "model.num_layers"
)
GIB = 2**30

log = logging.getLogger(__name__)


def line(small: dict[str, Any], large: dict[str, Any], name: str) -> tuple[float, float]:
    """Fit a line to two measurements: the part that is fixed, and what each picture adds."""
    images = large["batch_size"] - small["batch_size"]
    slope = max(0.0, (large[name] - small[name]) / images) if images else 0.0
    return large[name] - slope * large["batch_size"], slope


def probe_sizes(
    config: Config, sizes: tuple[int, int], free: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measurements at the smaller and the larger of two micro-batch sizes, or at smaller ones if
    those do not fit."""
    changed = {"batch_size": max(sizes), "effective_batch_size": None}
    return probe_twice(with_training(config, **changed), free)


def probe_twice(config: Config, free: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measurements at half the batch and the whole batch, or at smaller ones if memory is short.

    Args:
        free: bytes; the whole batch is only tried if twice the memory of the half is well below
            this.
    """
    batch = config.training.micro_batch_size
    size = max(1, batch // 2)
    while True:
        try:
            first = probe(with_training(config, batch_size=size))
            break
        except MemoryError:
            if size == 1:
                raise LimnerError(TOO_LARGE) from None
            size = max(1, size // 4)
    roomy = size == max(1, batch // 2) and 2 * first["peak_bytes"] <= free * MARGIN
    other = batch if roomy else max(1, size // 2)
    if other == size:
        return first, first
    second = probe(with_training(config, batch_size=other))
    return (second, first) if other < size else (first, second)


def probe(config: Config) -> dict[str, Any]:
    """One short run in a subprocess. Raises MemoryError, or LimnerError with its error message."""
    size = config.training.micro_batch_size
    log.info(
        f"measuring a short run, {size} {plural(size, 'picture')} at a time (a minute or more)"
    )
    return _measured_by("limner.training.probe", config)


def probe_quickly(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `probe_twice` measures, nearly, by a few updates in a subprocess (see
    limner.training.quick_probe): at half the batch and the whole batch.

    Raises:
        LimnerError: the run could not even start, or not even one picture fits into memory.
    """
    try:
        found = _measured_by("limner.training.quick_probe", config)
    except MemoryError:
        raise LimnerError(TOO_LARGE) from None
    return found["small"], found["large"]


def _measured_by(program: str, config: Config) -> dict[str, Any]:
    """What a module measured for a configuration, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", program],
        env=alone(),
        input=config.model_dump_json(),
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if done.returncode == -9 or "OutOfMemory" in done.stderr or "can't allocate" in done.stderr:
        raise MemoryError(last)
    raise LimnerError(
        f"a short run of this configuration failed: {last.partition('Error: ')[2] or last}"
    )


def images_in_memory(config: Config, rows: int) -> int:
    """Bytes of the decoded pictures that training keeps (see data.memory_mb)."""
    total = rows * 3 * config.data.image_size**2
    keeps = config.vae.pretrained_model_name is None and total <= config.data.memory_mb * 2**20
    return total if keeps else 0


def with_training(config: Config, **changes: Any) -> Config:
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})
