"""A few updates in a subprocess that tell memory and time in seconds, nearly
(`python -m limner.training.quick_probe`).

    python -m limner.training.quick_probe < request.json

Unlike `limner.training.probe` it compiles nothing, measures no held-out loss, draws nothing, and
does not look for damaged pictures. It begins with one picture at a time, and takes four times as
many until the batch is reached, or time or memory would be short for more. What a larger batch
takes follows from the last two sizes, and what torch.compile changes from measurements on other
machines.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from limner.config import Config, load_config
from limner.console import say
from limner.data.examples import Batch
from limner.distributed.processes import clip_gradients
from limner.files.process_identity import end_with_the_parent
from limner.memory import free_memory, give_back_freed_memory
from limner.training.batches import examples_of
from limner.training.memory_probe import MARGIN
from limner.training.monitor import throughput
from limner.training.monitor.machine_share import MachineShare
from limner.training.monitor.throughput import synchronised
from limner.training.probe import counts, encoding, peak_bytes, short_run
from limner.training.run import Run
from limner.training.saving import checkpoint_bytes
from limner.training.trainer import Trainer

SECONDS = 7.0
"""For updates."""
LEAST, MORE = 2, 4
"""Sizes that are measured however long that takes, since of fewer nothing larger follows; how many
times the one before each is."""
FASTER = 1.1
"""How many times as fast gradients are with torch.compile: 1.0 to 1.2 times for the demo's model,
the default one, and one of 768 x 12."""
GROWTH, KEPT, COMPILER = 0.5, 0.7, 130 * 2**20
"""By which share of the growth without it the peak grows with torch.compile, and which share of the
activations is kept for the backward pass; bytes that compiling takes on a processor, half of which
activations use afterwards. Measured for the same models; of GPUs the same is assumed."""


@dataclass(frozen=True)
class Measured:
    """An update of so many pictures at a time, without torch.compile.

    Attributes:
        gradients: seconds until they are computed.
        change: seconds in which the weights and their average are changed.
        peak: most memory that the process has had, bytes.
        kept: for the backward pass, bytes.
    """

    pictures: int
    gradients: float
    change: float
    peak: int
    kept: int


def measure(config: Config, seconds: float = SECONDS) -> dict[str, Any]:
    """What `limner.training.probe` measures, for half of the batch and the whole of it: `small` and
    `large`. `measured_batch_size` is the largest micro-batch that was measured."""
    config = config.model_copy(
        update={"data": config.data.model_copy(update={"check_pictures": False})}
    )
    batch_size = config.training.micro_batch_size
    accumulation = config.training.gradient_accumulation_steps
    with short_run(config, compile_model=False) as trainer:
        run = trainer.run
        compiled = config.training.compile_model and can_compile(run.device)
        machine = MachineShare() if run.device.type == "cpu" else None
        measured = updates(trainer, batch_size, seconds)
        shared = machine.look() if machine else None
        with run.ema.on(run.device):
            flops = throughput.flops_per_picture(run)
        peak = throughput.matmul_peak(run.device, run.dtype)
        counted = counts(trainer)
        every = {
            **counted,
            **encoding(trainer),
            "gflops_per_picture": round(flops / 1e9, 3),
            "checkpoint_bytes": checkpoint_bytes(run),
            "measured_batch_size": measured[-1].pictures,
            "shared": shared.in_words() if shared else None,
        }
        found = []
        for size in (max(1, batch_size // 2), batch_size):
            step, most = expected(measured, size, compiled, machine is not None, accumulation)
            share = size / step * flops / peak
            shown = round(share, 4) if share <= 1 else None
            told = {"batch_size": size, "seconds_per_step": step, "peak_bytes": most}
            found.append({**told, "share_of_matmul_peak": shown, **every})
        return {"small": found[0], "large": found[1]}


def updates(trainer: Trainer, batch_size: int, seconds: float) -> list[Measured]:
    """Of sizes from 1 to `batch_size`, each `MORE` times the last, as time and memory allow."""
    run, examples = trainer.run, examples_of(trainer.run)
    free, began = free_memory(run.device), time.perf_counter()

    def gradients(size: int) -> float:
        start = time.perf_counter()
        with synchronised(run.device):
            batch = Batch.of([examples[i] for i in range(size)])
            run.train_step.gradients_within_memory([batch], 0.0)
        return time.perf_counter() - start

    def change() -> float:
        start = time.perf_counter()
        with synchronised(run.device):
            change_weights(run)
        return time.perf_counter() - start

    gradients(1)
    change()  # makes the optimizers' states
    size, found = 1, list[Measured]()
    while True:
        give_back_freed_memory()  # blocks of another size, which would be counted but not used
        with (kept := Kept(trainer)).counted():
            step = gradients(size)
        changed = change()
        if step < seconds / 2 or time.perf_counter() - began + step < seconds:
            step = min(step, gradients(size))  # the first of a size is slower
            run.train_step.forget_gradients()
        if run.state.pieces > 1:  # memory ran out, and it was done in parts
            break
        found.append(Measured(size, step, changed, peak_bytes(run.device), kept.bytes))
        following = min(MORE * size, batch_size)
        left = seconds - (time.perf_counter() - began)
        late = left < step * following / size + changed and len(found) >= LEAST
        last = found[-2:]
        grows = (last[-1].peak - last[0].peak) / max(1, size - last[0].pictures)
        short = last[-1].peak + grows * (following - size) > free * MARGIN
        if size == batch_size or late or short:
            break
        size = following
    return found


def change_weights(run: Run) -> None:
    """What an update does after its gradients."""
    clip_gradients(run.model.parameters(), run.train_step.max_grad_norm)
    run.train_step.change_weights()
    if run.train_step.scaler:
        run.train_step.scaler.update()
    run.train_step.forget_gradients()
    run.update_ema()


class Kept:
    """Counts the bytes that an update keeps for its backward pass, besides the weights."""

    def __init__(self, trainer: Trainer) -> None:
        self.weights = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
        self.seen: dict[int, int] = {}

    def counted(self) -> saved_tensors_hooks:
        return saved_tensors_hooks(self._see, lambda tensor: tensor)

    def _see(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self.seen.values())


def expected(
    measured: list[Measured],
    size: int,
    compiled: bool,
    on_processor: bool,
    accumulation: int = 1,
) -> tuple[float, int]:
    """Seconds of a micro-batch of so many pictures, with its share of an update, and the peak in
    bytes.

    Args:
        accumulation: micro-batches of an update.
        compiled: whether training will use torch.compile.
    """
    few, many = measured[max(0, len(measured) - 2)], measured[-1]

    def growth(before: float, after: float) -> float:
        return max(0.0, after - before) / max(1, many.pictures - few.pictures)

    more = growth(few.gradients, many.gradients)
    gradients = many.gradients + more * (size - many.pictures)
    # Muon computes some of its directions at each update: not all updates take equally long.
    change = sum(one.change for one in measured) / len(measured) / accumulation
    grows, kept = growth(few.peak, many.peak), growth(few.kept, many.kept)
    fixed = many.peak - grows * many.pictures
    if not compiled:
        return gradients + change, round(fixed + max(grows, kept) * size)
    activations = max(GROWTH * grows, KEPT * kept) * size
    if on_processor:
        activations = COMPILER / 2 + max(activations, COMPILER / 2)
    return gradients / FASTER + change, round(fixed + activations)


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
