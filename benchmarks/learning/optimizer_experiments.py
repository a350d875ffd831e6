"""Experiments with the optimizer (see experiments.py)."""

# mypy: ignore-errors
# Methods are replaced here, which no type says.
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limner.training import muon
from limner.training.run import Run


def muon_3_iterations() -> None:
    """Newton-Schulz stops after three of its five iterations."""
    full = muon.orthogonalise
    muon.orthogonalise = lambda matrices: full(matrices, 3)


def polar_express_4() -> None:
    """Amsel et al. 2025 (arXiv 2505.16932): other coefficients for each of four iterations."""
    coefficients = (
        (8.2873, -23.5959, 17.3004),
        (4.1071, -2.9478, 0.5448),
        (3.9487, -2.9089, 0.5518),
        (3.3184, -2.4885, 0.5100),
    )

    def orthogonalise(matrices: Tensor) -> Tensor:
        x = matrices.to(torch.bfloat16)
        wide = x.shape[1] <= x.shape[2]
        x = x if wide else x.mT
        x = x / (x.norm(dim=(1, 2), keepdim=True) * 1.01 + 1e-7)
        for a, b, c in coefficients:
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x if wide else x.mT

    muon.orthogonalise = orthogonalise


def normuon() -> None:
    """Li et al. 2025 (arXiv 2510.05491): each neuron's update divided by the root of its mean
    square over time, the whole scaled back to its size."""
    full = muon.orthogonalise
    memory: dict[tuple[int, ...], Tensor] = {}

    def orthogonalise(matrices: Tensor) -> Tensor:
        update = full(matrices).float()
        key = tuple(matrices.shape)
        squares = update.square().mean(dim=-1, keepdim=True)
        memory[key] = memory.get(key, squares).lerp(squares, 0.05)
        scaled = update / (memory[key].sqrt() + 1e-8)
        size = update.norm(dim=(1, 2), keepdim=True)
        return scaled * (size / (scaled.norm(dim=(1, 2), keepdim=True) + 1e-8))

    muon.orthogonalise = orthogonalise


def cautious() -> None:
    """Liang et al. 2024 (arXiv 2411.16085): no weight moves against its present gradient."""
    before = muon.Muon.step

    def step(self: muon.Muon, closure: None = None) -> None:
        parameters = [
            p for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        old = [p.detach().clone() for p in parameters]
        before(self)
        with torch.no_grad():
            for p, was in zip(parameters, old, strict=True):
                moved = p - was
                agrees = (moved * p.grad < 0).float()
                p.copy_(was + moved * agrees / agrees.mean().clamp(min=0.1))

    muon.Muon.step = step


class ScheduleFreeAdamW(torch.optim.AdamW):
    """Defazio et al. 2024 (arXiv 2405.15682), algorithm 1, with y in the model."""

    beta = 0.9

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            group["sum"] = group.get("sum", 0.0) + group["lr"] ** 2
            share = group["lr"] ** 2 / max(group["sum"], 1e-20)
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["z"], state["x"] = p.clone(), p.clone()
                    state["v"] = torch.zeros_like(p)
                second = group["betas"][1]
                state["v"].lerp_(p.grad.square(), 1 - second)
                size = (state["v"] / (1 - second ** group["k"])).sqrt() + group["eps"]
                state["z"].addcdiv_(p.grad, size, value=-group["lr"])
                state["x"].lerp_(state["z"], share)
                p.copy_(state["z"].lerp(state["x"], self.beta))


def schedule_free() -> None:
    """The averaged weights are those that the method keeps itself."""
    torch.optim.AdamW = ScheduleFreeAdamW
    torch.optim.AdamW = lambda *a, fused=None, **k: ScheduleFreeAdamW(*a, **k)

    @torch.no_grad()
    def update_ema(self: Run) -> None:
        states = self.optimizers["adamw"].state
        for averaged, p in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
            averaged.copy_(states[p]["x"] if p in states else p)

    Run.update_ema = update_ema
