"""Exponential moving average (EMA) of the weights, used for sampling."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from limner.distributed.dtensors import full, local
from limner.models.text_to_image import TextToImage


class EMA:
    """The average, and a whole model of it to look at: `model`.

    Drawing and the held-out loss use that model, which is never compiled: their batches have other
    shapes, each of which would be compiled anew.

    Of a model in shards the average is kept in the same shards. `model` then has memory in the main
    process only, in that of the host, and `collect` brings it up to date.

    Args:
        model: as it is before any of it is sharded.
    """

    def __init__(self, model: TextToImage) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.shards: dict[str, Tensor] = {}
        self.main = True

    def shard(self, model: TextToImage, main: bool) -> None:
        """Keep it as `model`, in shards by now, keeps its weights.

        Args:
            main: whether this process is the one that looks.
        """
        self.model.to("cpu" if main else "meta")
        self.main = main
        self.shards = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: TextToImage, decay: float) -> None:
        """ema = decay * ema + (1 - decay) * weights."""
        average = self.shards.values() if self.shards else self.model.parameters()
        # What does not learn, beside adapters, is its own average.
        learning = [
            pair for pair in zip(average, model.parameters(), strict=True) if pair[1].requires_grad
        ]
        mine = [local(tensor.detach()) for tensor, _ in learning]
        torch._foreach_lerp_(mine, [local(p.detach()) for _, p in learning], 1 - decay)

    @torch.no_grad()
    def collect(self) -> None:
        """Bring `model` up to date. Every process calls it."""
        weights = self.model.state_dict() if self.shards and self.main else {}
        for name, part in self.shards.items():
            whole = full(part)
            if weights:
                weights[name].copy_(whole)

    @contextlib.contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """Have `model` on the device for as long as it is looked at; in the main process."""
        if not self.shards:
            yield
            return
        try:
            self.model.to(device)
            yield
        finally:
            self.model.to("cpu")

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.shards) or self.model.state_dict()

    @torch.no_grad()
    def load_state_dict(self, weights: Mapping[str, Tensor]) -> None:
        """Weights by name, each in parts as it is here."""
        if not self.shards:
            self.model.load_state_dict(weights)
        for name, part in self.shards.items():
            local(part).copy_(local(weights[name]))
