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
    """The average of the weights, and `model`, which has it as its weights.

    Sampling and the held-out loss use `model`. It is never compiled, because each of their batch
    shapes would be compiled anew.

    The average of a sharded model is sharded the same way. `model` then exists only in the main
    process, in host memory, and `collect` brings it up to date.

    Args:
        model: the model, before it is sharded.
    """

    def __init__(self, model: TextToImage) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.shards: dict[str, Tensor] = {}
        self.main = True

    def shard(self, model: TextToImage, main: bool) -> None:
        """Shard the average as `model` is sharded.

        Args:
            main: whether this is the main process.
        """
        self.model.to("cpu" if main else "meta")
        self.main = main
        self.shards = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: TextToImage, decay: float) -> None:
        """ema = decay * ema + (1 - decay) * weights."""
        average = self.shards.values() if self.shards else self.model.parameters()
        # Weights that are frozen beside adapters are their own average.
        learning = [
            pair for pair in zip(average, model.parameters(), strict=True) if pair[1].requires_grad
        ]
        mine = [local(tensor.detach()) for tensor, _ in learning]
        torch._foreach_lerp_(mine, [local(p.detach()) for _, p in learning], 1 - decay)

    @torch.no_grad()
    def collect(self) -> None:
        """Bring `model` up to date. Every process must call this."""
        weights = self.model.state_dict() if self.shards and self.main else {}
        for name, part in self.shards.items():
            whole = full(part)
            if weights:
                weights[name].copy_(whole)

    @contextlib.contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """Context manager: `model` is on the device meanwhile. Only in the main process."""
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
        """Load weights by name, each sharded as the average is."""
        if not self.shards:
            self.model.load_state_dict(weights)
        for name, part in self.shards.items():
            local(part).copy_(local(weights[name]))
