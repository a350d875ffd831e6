"""A few updates in a subprocess that measure memory and time in seconds, nearly
(`python -m limner.training.quick_probe`).

    python -m limner.training.quick_probe < request.json

Unlike `limner.training.probe` it compiles nothing, measures no held-out loss, draws nothing, and
does not look for damaged pictures. It begins with one picture at a time, and doubles them until the
batch is reached, or time or memory would be short for more. What torch.compile changes is added as
it was measured elsewhere.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import time
from typing import Any

import torch

from limner.config import Config, load_config
from limner.console import say
from limner.data.examples import Batch
from limner.files.process_identity import end_with_the_parent
from limner.memory import free_memory, give_back_freed_memory
from limner.training.batches import examples_of
from limner.training.memory_probe import MARGIN
from limner.training.monitor import throughput
from limner.training.monitor.throughput import synchronised
from limner.training.probe import counts, encoding, peak_bytes, short_run
from limner.training.trainer import Trainer

SECONDS = 5.0
"""For updates."""
LEAST = 2
"""Sizes, which are measured however long that takes: of fewer nothing larger follows."""
FASTER_COMPILED, KEPT_COMPILED, COMPILER = 1.1, 0.7, 130 * 2**20
"""What torch.compile changes on a processor: how many times as fast an update is, the share of
the activations that is kept for the backward pass, and what it takes itself, bytes. For the demo's
model and the default one an update takes 1.06 to 1.17 times as long without it, and 0.69 and 0.71
of the activations are kept with it. Of GPUs the same is assumed."""


def measure(config: Config, seconds: float = SECONDS) -> dict[str, Any]:
    """Measurements at two micro-batch sizes, `small` and `large`, as `limner.training.probe` has
    them: the batch itself and half of it, or smaller ones."""
    config = config.model_copy(
        update={"data": config.data.model_copy(update={"check_pictures": False})}
    )
    with short_run(config, compile_model=False) as trainer:
        run = trainer.run
        compiles = config.training.compile_model and can_compile(run.device)
        measured = updates(trainer, config.training.micro_batch_size, seconds)
        with run.ema.on(run.device):
            flops = throughput.flops_per_picture(run)
        peak = throughput.matmul_peak(run.device, run.dtype)
        weights = counts(trainer)
        every = {
            **weights,
            **encoding(trainer),
            "gflops_per_picture": round(flops / 1e9, 3),
            "checkpoint_bytes": checkpoint_bytes(trainer, weights),
        }
        found = []
        for size, step, most in measured[-2:]:
            if compiles:
                step /= FASTER_COMPILED
                most -= round((1 - KEPT_COMPILED) * max(0.0, growth(measured)) * size)
                most += COMPILER if run.device.type == "cpu" else 0
            share = size / step * flops / peak
            found.append(
                {
                    "batch_size": size,
                    "seconds_per_step": step,
                    "peak_bytes": most,
                    "share_of_matmul_peak": round(share, 4) if share <= 1 else None,
                    **every,
                }
            )
        return {"small": found[0], "large": found[-1]}


def updates(trainer: Trainer, batch_size: int, seconds: float) -> list[tuple[int, float, int]]:
    """(pictures at a time, seconds of an update, peak in bytes) of sizes that double from 1."""
    run, examples = trainer.run, examples_of(trainer.run)
    free, began = free_memory(run.device), time.perf_counter()

    def update(size: int) -> float:
        start = time.perf_counter()
        with synchronised(run.device):
            run.train_step([Batch.of([examples[i] for i in range(size)])])
            run.update_ema()
        return time.perf_counter() - start

    update(1)  # makes the optimizers' states
    size, found = 1, list[tuple[int, float, int]]()
    while True:
        give_back_freed_memory()  # blocks of another size, which would be counted but not used
        update_seconds = update(size)
        if run.state.pieces > 1:  # memory ran out, and it was done in parts
            break
        if time.perf_counter() - began + update_seconds < seconds:
            update_seconds = min(update_seconds, update(size))
        found.append((size, update_seconds, peak_bytes(run.device)))
        following = min(2 * size, batch_size)
        left = seconds - (time.perf_counter() - began)
        each = growth(found)
        room = free * MARGIN - found[-1][2] - each * (following - size)
        late = left < 2 * update_seconds and len(found) >= LEAST
        if size == batch_size or late or room < 0:
            break
        size = following
    return found


def growth(measured: list[tuple[int, float, int]]) -> float:
    """Bytes that a picture more adds to the peak."""
    if len(measured) < 2:
        return 0.0
    (few, _, before), (many, _, after) = measured[-2:]
    return (after - before) / (many - few)


def checkpoint_bytes(trainer: Trainer, counted: dict[str, Any]) -> int:
    """Of a checkpoint, without writing one."""
    run = trainer.run
    found = counted["weight_bytes"] * (2 if run.config.training.use_ema else 1)
    found += counted["optimizer_bytes"]
    found += 0 if run.rows is None else run.rows.nbytes
    if run.config.lora.rank is not None:
        found += 2 * counted["trained_bytes"]
    return found


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has what it needs; trying it, as training does, takes seconds."""
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    return device.type != "cpu" or any(map(shutil.which, ("g++", "clang++", "cl")))


def main() -> None:
    end_with_the_parent()
    say(json.dumps(measure(load_config(json.load(sys.stdin)))))


if __name__ == "__main__":
    main()
