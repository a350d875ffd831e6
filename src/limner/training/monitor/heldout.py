"""The held-out loss, on fixed noise levels with fixed noise, so that values are comparable.

The training loss hardly moves, for it averages over random noise levels; this one is measured on
the same pictures, levels, and noise every time, and on as many trained pictures, so that the gap
shows when the model starts to memorise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limner.data.dataset import ImageError, Refused
from limner.data.examples import Captions, Source
from limner.data.order import evenly_spaced, seeded_generator
from limner.diffusion.objective import Objective
from limner.text.batch import TextEmbeddings
from limner.text.words import some, stack

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of num_train_timesteps."""


@dataclass(frozen=True)
class FixedGrid:
    """Some pictures with their captions, to be evaluated at every level."""

    images: Tensor | list[Tensor]  # float32 [N, C, h, w]; N of [C, h, w] where sizes differ
    texts: Tensor | TextEmbeddings  # of N captions

    @classmethod
    def of(
        cls, images: Source, captions: Captions, count: int
    ) -> tuple[FixedGrid | None, list[Refused]]:
        """At most `count` pictures, evenly spread over the rows (None if all are unusable), and the
        unusable rows among them."""
        good: list[tuple[Tensor, Any]] = []
        refused: list[Refused] = []
        for position in evenly_spaced(len(images.rows), count):
            row = images.rows[position]
            try:
                good.append((images.tensor(position), captions(row.captions[0])))
            except ImageError as error:
                refused.append(Refused(row.key, str(error)))
        if not good:
            return None, refused
        found, texts = [p for p, _ in good], stack([t for _, t in good])
        alike = len({p.shape for p in found}) == 1
        return cls(torch.stack(found) if alike else found, texts), refused

    def batches(self, size: int) -> Iterator[list[int]]:
        """Indices of the pictures in batches of at most `size` of the same shape, in order."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for place, image in enumerate(self.images):
            by_shape.setdefault(tuple(image.shape), []).append(place)
        for places in by_shape.values():
            yield from (places[i : i + size] for i in range(0, len(places), size))


def loss_by_level(
    model: nn.Module, objective: Objective, grid: FixedGrid, batch_size: int, device: torch.device
) -> dict[str, float]:
    """Mean loss at each level, keyed by its timestep."""
    losses = losses_by_level(model, objective, grid, batch_size, device)
    return {timestep: float(each.sum()) / len(each) for timestep, each in losses.items()}


@torch.no_grad()
def losses_by_level(
    model: nn.Module,
    objective: Objective,
    grid: FixedGrid,
    batch_size: int,
    device: torch.device,
    place: int = 0,
) -> dict[str, Tensor]:
    """The loss of each picture at each level, float32 [N] on the CPU, keyed by its timestep.

    Args:
        place: position of the grid's first picture among all that are evaluated; it decides the
            noise of each picture.
    """
    losses: dict[str, Tensor] = {}
    for level in LEVELS:
        timestep = round(level * objective.noise_schedule.num_train_timesteps)
        found = torch.zeros(len(grid.images))
        for places in grid.batches(batch_size):
            image = torch.stack([grid.images[i] for i in places]).to(device)
            text = some(grid.texts, places).to(device)
            noise = torch.stack(
                [
                    torch.randn(
                        image.shape[1:],
                        generator=seeded_generator(0, "held-out", place + i, timestep),
                    )
                    for i in places
                ]
            ).to(device)
            t = torch.full((len(image),), float(timestep), device=device)
            output = model(objective.add_noise(image, noise, t), t, text)
            found[places] = objective.loss(output, image, noise, t).float().cpu()
        losses[str(timestep)] = found
    return losses


def mean(losses: dict[str, float]) -> float:
    return sum(losses.values()) / len(losses)
