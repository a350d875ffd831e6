"""Communication between the processes of one run: gradients, and whether all went well.

Gradients are averaged here after the backward pass, not during it by DistributedDataParallel: only
then can a process tell the others that it ran out of memory, so that all repeat the step in smaller
parts. (The price: communication does not overlap with the backward pass.)
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from limner.distributed.dtensors import full, is_shard
from limner.errors import LimnerError

T = TypeVar("T")
BUCKET = 2**24
"""Numbers that are sent together: 64 MiB."""


RESTARTED = (
    "; after a restart torchrun hands out the addresses of processes that are gone (pytorch issue "
    "135712): set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 where torchrun is started"
)


@contextlib.contextmanager
def meeting() -> Iterator[None]:
    """Turn the error of processes that cannot connect into a LimnerError.

    Raises:
        LimnerError: for such an error; others go through.
    """
    try:
        yield
    except RuntimeError as error:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
            raise
        restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        raise LimnerError(
            "the processes of this run cannot find each other "
            f"({' '.join(str(error).split())[:160]}); check that all were started, with the same "
            "number of processes and the same address and port of the first"
            + (RESTARTED if restarted else "")
        ) from error


def alone() -> dict[str, str]:
    """The environment for a program that this process starts and that is not part of the run."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    starts = ("TORCHELASTIC_", "ACCELERATE_", "GROUP_", "ROLE_", "FSDP_")
    return {k: v for k, v in os.environ.items() if k not in names and not k.startswith(starts)}


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over the processes; sharded ones already are."""
    if not _several():
        return
    gradients = [p.grad for p in parameters if p.grad is not None and not is_shard(p)]
    for bucket in _buckets(gradients):
        flat = torch.cat([g.reshape(-1) for g in bucket])
        _all_reduce(flat)
        flat /= dist.get_world_size()
        for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def clip_gradients(parameters: Iterable[Tensor], longest: float) -> float:
    """Clip the gradient to this L2 norm; returns the norm before clipping, over all shards."""
    parameters = list(parameters)
    norm = full(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    torch.nn.utils.clip_grads_with_norm_(parameters, longest, norm)
    return float(norm)


def sum_over_processes(*tensors: Tensor) -> None:
    """Replace each tensor (all of one shape) by its sum over the processes."""
    if _several():
        stacked = torch.stack(tensors)
        _all_reduce(stacked)
        for tensor, total in zip(tensors, stacked, strict=True):
            tensor.copy_(total)


def any_process(here: bool) -> bool:
    """Whether the condition holds in any process of the run; every process must call this."""
    if not _several():
        return here
    flag = torch.tensor([here], dtype=torch.int32)
    _all_reduce(flag, op=dist.ReduceOp.MAX, group=_on_hosts())
    return bool(flag.item())


def _all_reduce(tensor: Tensor, **how: Any) -> None:
    with others_may_end():
        dist.all_reduce(tensor, **how)


@contextlib.contextmanager
def others_may_end() -> Iterator[None]:
    """Turn torch's error of a lost connection into a LimnerError that another process has ended.

    Raises:
        LimnerError: for such an error; others go through.
    """
    try:
        yield
    except RuntimeError as error:
        if not (_several() and _is_lost(error)):
            raise
        raise LimnerError(
            "another process of this run has ended, or did not respond within "
            "training.process_timeout, so this one cannot continue "
            f"({' '.join(str(error).split())[:160]}). Start all processes again; the run resumes "
            "from its last checkpoint"
        ) from error


def _is_lost(error: RuntimeError) -> bool:
    # Errors of NCCL and of the store have a type; those of gloo name its source files.
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


@lru_cache(maxsize=1)
def _on_hosts() -> dist.ProcessGroup | None:
    """A process group on the CPU, which does not wait for the GPU; None: the default one is."""
    if dist.get_backend() == "gloo":
        return None
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=_patience))


def done_by_one(here: bool, do: Callable[[], T]) -> T | None:
    """Run the block in one process while the others wait; every process must call this.

    Args:
        here: whether this process runs it.

    Returns:
        What it returned; None in the others.

    Raises:
        LimnerError, OSError: what it raised; in the others a LimnerError with the same message.
    """
    failed: Exception | None = None
    result = None
    if here:
        try:
            result = do()
        except (LimnerError, OSError) as error:
            failed = error
    if _several():
        said = [str(failed) if failed else None]
        dist.broadcast_object_list(said, group=_on_hosts())
        if said[0] is not None and failed is None:
            raise LimnerError(said[0])
    if failed is not None:
        raise failed
    return result


_patience = 1800.0


def wait_for_others(seconds: float) -> timedelta:
    """Set how long processes wait for each other from now on; returns it as a timedelta."""
    global _patience
    _patience = seconds
    return timedelta(seconds=seconds)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
