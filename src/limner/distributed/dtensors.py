"""Gather, slice, and match DTensors: tensors of which each process holds a shard (FSDP2).

They are split along the first dimension, as fully_shard splits weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_shard(value: Any) -> bool:
    """Whether this is a shard of a tensor."""
    return hasattr(value, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, or all of it if it is not sharded."""
    return tensor.to_local() if is_shard(tensor) else tensor  # type: ignore[attr-defined]


def full(tensor: Tensor) -> Tensor:
    """The full tensor. Every process must call this, in the same order."""
    return tensor.full_tensor() if is_shard(tensor) else tensor  # type: ignore[attr-defined]


def shard_like(reference: Tensor, whole: Tensor) -> Tensor:
    """A copy of this process's shard of a whole tensor, sharded as `reference` is; the tensor
    itself if `reference` is not sharded. Nothing is sent, because each process has the whole."""
    if not is_shard(reference):
        return whole
    mesh = reference.device_mesh  # type: ignore[attr-defined]
    parts = whole.chunk(mesh.size())
    rank = mesh.get_local_rank()
    mine = parts[rank] if rank < len(parts) else whole[:0]
    return with_local(reference, mine.to(reference.device, copy=True))


def with_local(reference: Tensor, mine: Tensor) -> Tensor:
    """The tensor of `reference`'s shape whose shard in this process is `mine`."""
    if not is_shard(reference):
        return mine
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        mine,
        reference.device_mesh,  # type: ignore[attr-defined]
        reference.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=reference.shape,
        stride=reference.stride(),
    )


def gathered(value: Any, keep: bool) -> Any:
    """Gather the tensors in nested dicts and lists into host memory, one at a time.

    Args:
        keep: False in a process that only sends its shards, and gets None for each tensor.
    """
    if isinstance(value, Tensor):
        whole = full(value.detach())
        return whole.to("cpu", copy=not is_shard(value)) if keep else None
    if isinstance(value, dict):
        return {key: gathered(inner, keep) for key, inner in value.items()}
    return [gathered(inner, keep) for inner in value] if isinstance(value, list) else value


def sharded_state(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's saved state, with each tensor of a sharded weight's shape replaced by this
    process's shard. Other values stay."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not any(map(is_shard, parameters)):
        return saved

    def part(index: int, value: Any) -> Any:
        weight = parameters[index]
        same = isinstance(value, Tensor) and value.shape == weight.shape
        return shard_like(weight, value) if same else value

    state = {
        index: {key: part(index, value) for key, value in values.items()}
        for index, values in saved["state"].items()
    }
    return {**saved, "state": state}
