"""Muon for the matrices of the blocks, AdamW for everything else.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a
matrix by the nearest orthogonal matrix, so that every direction learns at one rate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from limner.config import Config
from limner.models.layers import StackedLinear
from limner.training.muon import Muon

TEXT_SHARE = 0.1
"""Share of the learning rate for a text encoder trained beside adapters: the default rate for
adapters is ten times AdamW's, and the text encoder's own weights train at AdamW's. No other share
was tried."""


def build_optimizers(model: nn.Module, config: Config) -> dict[str, torch.optim.Optimizer]:
    """The optimizers by name; together they own every parameter exactly once."""
    settings, lr = config.optimizer, config.training.learning_rate
    assert lr is not None, "load_config resolves it"
    matrices: dict[int, list[Tensor]] = defaultdict(list)
    if settings.type == "muon":
        for name, module in model.named_modules():
            # The blocks' matrices only: embeddings, modulation, first and last layers are tables or
            # maps between unlike spaces, for which AdamW is better (Jordan et al.).
            learns = isinstance(module, nn.Linear) and module.weight.requires_grad
            if learns and "blocks." in name and "adaLN" not in name:
                parts = module.parts if isinstance(module, StackedLinear) else 1
                matrices[parts].append(module.weight)
    taken = {id(p) for group in matrices.values() for p in group}
    rest = {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) not in taken}
    share = settings.adamw_rate_share if matrices else 1.0
    groups = []
    for names, its_share in _by_rate(rest, share, config.lora.rank is not None):
        for decayed in (True, False):
            params = [rest[name] for name in names if (rest[name].ndim >= 2) == decayed]
            decay = settings.weight_decay if decayed else 0.0
            # The trainer multiplies each update's rate by `rate_share`.
            groups.append({"params": params, "weight_decay": decay, "rate_share": its_share})
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW(
            groups,
            lr=lr,
            betas=settings.betas,
            eps=settings.eps,
            fused=next(iter(rest.values())).device.type in ("cuda", "cpu"),
        )
    }
    if matrices:
        stacks = [{"params": group, "parts": parts} for parts, group in sorted(matrices.items())]
        optimizers["muon"] = Muon(
            stacks, lr, settings.muon_momentum, settings.weight_decay, settings.muon_period
        )
    return optimizers


def _by_rate(names: Iterable[str], share: float, adapted: bool) -> list[tuple[list[str], float]]:
    """Group names of parameters by their share of the learning rate."""
    if not adapted:
        return [(list(names), share)]
    text = [name for name in names if name.startswith("text_encoder.")]
    rest = [name for name in names if name not in text]
    return [(rest, share), (text, TEXT_SHARE)] if text else [(rest, share)]
