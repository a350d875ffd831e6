"""What the tests of several processes start: runs one after the other, and what may go wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from limner import Trainer, load_config
from limner.checkpoint import save_sharded
from limner.distributed.processes import clip_gradients
from limner.training.monitor import throughput
from limner.training.muon import Muon
from limner.training.train_step import TrainStep

LOSS = TrainStep.loss


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def nan_in_one(step: TrainStep, batch: Any, timesteps: torch.Tensor) -> torch.Tensor:
    """The third update's loss is no number in the last process."""
    last = dist.get_world_size() - 1 if dist.is_initialized() else 0
    wrong = step.state.step == 2 and last == rank()
    return LOSS(step, batch, timesteps) * (float("nan") if wrong else 1.0)


def short_of_memory(step: TrainStep, batch: Any, timesteps: torch.Tensor) -> torch.Tensor:
    """Process 1 has no room for more than two pictures from the fifth update on."""
    if step.state.step >= 4 and rank() == 1 and len(batch) > 2:
        raise torch.OutOfMemoryError("injected: out of memory")
    return LOSS(step, batch, timesteps)


def killed_once(step: TrainStep, batch: Any, timesteps: torch.Tensor) -> torch.Tensor:
    """Process 1 dies in its fifth update, in its first life."""
    if step.state.step == 4 and rank() == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return LOSS(step, batch, timesteps)


def dawdling(step: TrainStep, batch: Any, timesteps: torch.Tensor) -> torch.Tensor:
    """An update takes so long that something can happen in it."""
    time.sleep(0.4)
    return LOSS(step, batch, timesteps)


def unhurried(step: TrainStep, batch: Any, timesteps: torch.Tensor) -> torch.Tensor:
    """A run does not end before a signal reaches it, however fast the machine."""
    time.sleep(0.05)
    return LOSS(step, batch, timesteps)


def failing(step: TrainStep, batch: Any, timesteps: torch.Tensor) -> torch.Tensor:
    """Process 1 has an error that nobody expected."""
    if step.state.step == 2 and rank() == 1:
        raise ZeroDivisionError("injected")
    return LOSS(step, batch, timesteps)


def muon_in_shards() -> None:
    """Muon of matrices in shards makes, to the bit, the steps of Muon of whole ones."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    shapes = [(12, 8), (12, 8), (6, 10), (3, 5)]  # the last in fewer rows than processes
    generator = torch.Generator().manual_seed(0)
    draws = [[torch.randn(s, generator=generator) for s in shapes] for _ in range(6)]
    whole = [torch.nn.Parameter(t.clone()) for t in draws[0]]
    parts = [torch.nn.Parameter(distribute_tensor(t, mesh, [Shard(0)])) for t in draws[0]]
    plain, sharded = (
        Muon([{"params": p[:3], "parts": 3}, {"params": p[3:]}], 0.1, weight_decay=0.1, period=2)
        for p in (whole, parts)
    )
    for gradients in draws[1:]:
        for a, b, gradient in zip(whole, parts, gradients, strict=True):
            a.grad, b.grad = gradient.clone(), distribute_tensor(gradient, mesh, [Shard(0)])
        norms = clip_gradients(whole, 2.0), clip_gradients(parts, 2.0)
        assert abs(norms[0] - norms[1]) < 1e-5 * norms[0], norms
        for a, b in zip(whole, parts, strict=True):
            torch.testing.assert_close(b.grad.full_tensor(), a.grad)
            b.grad = distribute_tensor(a.grad, mesh, [Shard(0)])
        plain.step()
        sharded.step()
    for a, b in zip(whole, parts, strict=True):
        assert torch.equal(b.full_tensor(), a), (b.full_tensor() - a).abs().max()
        assert b.to_local().shape[0] < a.shape[0]


def only_a_part_is_here(trainer: Trainer) -> None:
    """Of weights, average, and optimizer states; biases are split too unevenly to count."""
    weights = dict(trainer.model.named_parameters())
    average = trainer.run.ema.shards
    states = [s for o in trainer.run.optimizers.values() for s in o.state_dict()["state"].values()]
    kept = [t for s in states for t in s.values() if isinstance(t, torch.Tensor) and t.ndim]
    for tensors in (weights.values(), average.values(), kept):
        here = sum(t.to_local().numel() for t in tensors)  # type: ignore[attr-defined]
        assert here < 1.05 / dist.get_world_size() * sum(t.numel() for t in tensors)
    main = dist.get_rank() == 0
    assert {t.device.type for t in trainer.averaged.parameters()} == {"cpu" if main else "meta"}


def no_room_once() -> None:
    """Process 1 cannot write its part of the first checkpoint."""
    write = save_sharded.write_shard

    def full(folder: Path, number: int, *others: Any) -> None:
        if number == 1 and folder.name.startswith(".checkpoint-3."):
            raise OSError(28, "No space left on device")
        write(folder, number, *others)

    save_sharded.write_shard = full


FAULTS: dict[str, Callable[[TrainStep, Any, torch.Tensor], torch.Tensor]] = {
    f.__name__: f for f in (nan_in_one, short_of_memory, killed_once, dawdling, unhurried, failing)
}


def main(told: str) -> None:
    throughput.matmul_peak = lambda device, dtype: 1e12  # takes longer than these runs
    torch.set_num_threads(1)
    for config, resume, fault in json.loads(told):
        TrainStep.loss = FAULTS.get(fault, LOSS)  # type: ignore[method-assign]
        if fault == "no_room_once":
            no_room_once()
        trainer = Trainer(load_config(config), resume=resume)
        trainer.train()
        if trainer.run.sharded:
            only_a_part_is_here(trainer)
        if fault == "muon_in_shards":
            muon_in_shards()
        if fault == "saved_again":
            trainer.save_checkpoint(trainer.folder / "final")


def command(told: str) -> None:
    from limner import cli

    torch.set_num_threads(1)
    throughput.matmul_peak = lambda device, dtype: 1e12
    sys.exit(cli.main(json.loads(told)))


def as_rank(number: int, count: int, port: int, what: str, told: str, said: str) -> None:
    """One of `count` processes that nobody launched; what it says goes to a file.

    Args:
        what: "main" or "command", which is told `told`.
    """
    names = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    say_into(said)
    {"main": main, "command": command}[what](told)


def alone(words: list[str], said: str, ignored: tuple[str, ...], fault: str | None) -> None:
    """`limner WORDS`; what it says goes to a file."""
    # What it was forked from may ignore them, as everything does under nohup.
    for name, handler in (("SIGHUP", signal.SIG_DFL), ("SIGINT", signal.default_int_handler)):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), handler)
    TrainStep.loss = FAULTS.get(fault or "", LOSS)  # type: ignore[method-assign]
    for name in ignored:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    if "fork" in multiprocessing.get_all_start_methods():
        # As in any program; else the loader's workers would be started as this process was.
        multiprocessing.set_start_method("fork", force=True)
    say_into(said)
    command(json.dumps(words))


def say_into(said: str) -> None:
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    sys.stdout = sys.stderr = os.fdopen(output, "w", buffering=1, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
