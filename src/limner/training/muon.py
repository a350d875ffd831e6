"""Muon: an optimizer with orthogonalised momentum, for the weight matrices of the blocks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from limner.device import fast_bfloat16
from limner.distributed.dtensors import full, local, shard_like, with_local


class Muon(torch.optim.Optimizer):
    """Muon: momentum orthogonalised by Newton-Schulz iterations, scaled to the size of an AdamW
    update.

    Matrices of the same shape are orthogonalised in one batch, which makes it cheap for small
    models. The update's root mean square is 0.2 for any shape, as in Moonlight (Liu et al. 2025,
    equation 4), so that it shares AdamW's learning rate.

    With sharded matrices, each process holds a shard of the momentum and of the direction. A matrix
    that is due is gathered and orthogonalised by every process, as without sharding.

    Args:
        params: matrices and convolutions, or groups with `params` and `parts`: each matrix of a
            group consists of that many stacked matrices, which are orthogonalised separately.
        lr: learning rate, above 0.
        momentum: in [0, 1), Nesterov.
        weight_decay: decoupled.
        period: orthogonalise each matrix every this many updates, and reuse its last direction in
            between.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        period: int = 1,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "period": period,
            "parts": 1,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            weights = [local(p) for p in parameters]
            gradients = [local(p.grad) for p in parameters]
            for p in parameters:
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            momenta = [local(self.state[p]["momentum"]) for p in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            nesterov = torch._foreach_lerp(gradients, momenta, group["momentum"])
            if group["weight_decay"]:
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            for shape, members in _by_shape(parameters).items():
                rows = shape[0] // group["parts"]
                due = [i for i in members if self._is_due(parameters[i], i, group["period"])]
                if due:
                    whole = [full(with_local(parameters[i], nesterov[i])) for i in due]
                    stacked = torch.stack([matrix.reshape(shape) for matrix in whole])
                    found = orthogonalise(stacked.reshape(-1, rows, shape[1])).reshape(-1, *shape)
                    for i, direction in zip(due, found, strict=True):
                        # A copy: a view would keep, and save, the directions of all the others.
                        kept = direction.reshape(parameters[i].shape).clone()
                        self.state[parameters[i]]["direction"] = shard_like(parameters[i], kept)
                torch._foreach_add_(
                    [weights[i] for i in members],
                    [local(self.state[parameters[i]]["direction"]) for i in members],
                    alpha=-group["lr"] * 0.2 * max(rows, shape[1]) ** 0.5,
                )

    def _is_due(self, p: Tensor, number: int, period: int) -> bool:
        """Whether a matrix is orthogonalised now; counts the updates until the next time.

        The first wait differs from matrix to matrix, so that each update orthogonalises some of
        them. Their sizes are not balanced: matrices of a block alternate in size, so with a period
        of 2 the smaller ones are due in one update and the larger ones, which take longer, in the
        next.
        """
        state = self.state[p]
        if "direction" not in state:
            state["wait"] = number % period
            return True
        due = state["wait"] == 0
        state["wait"] = period - 1 if due else min(state["wait"], period) - 1
        return due


def _by_shape(tensors: list[Tensor]) -> dict[tuple[int, int], list[int]]:
    """Indices of the tensors by matrix shape; a convolution is [out, in x height x width]."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, tensor in enumerate(tensors):
        groups[tensor.shape[0], tensor.shape[1:].numel()].append(i)
    return groups


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Push the singular values of each matrix [K, rows, columns] to about 1 (0.7 to 1.2).

    Five steps of the quintic Newton-Schulz iteration with Jordan's coefficients, in bfloat16
    where the hardware supports it: it need not be exact.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(torch.bfloat16 if fast_bfloat16(matrices.device) else torch.float32)
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x if wide else x.mT
