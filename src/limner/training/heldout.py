"""The held-out loss: on a fixed grid of (noise level, noise), so that two numbers can be compared.

The training loss hardly moves, for it averages over random noise levels; this one is measured at
the same pictures, levels, and noise every time, and for as many trained pictures beside it, so that
the gap says when the model starts to memorise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limner.data.examples import Captions, Source
from limner.data.order import seeded_generator
from limner.data.rows import PictureError, Refused
from limner.diffusion.objective import Objective
from limner.text.frozen import FrozenText
from limner.text.words import some, stack

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of num_train_timesteps."""


@dataclass(frozen=True)
class FixedGrid:
    """Some pictures with their captions, to be looked at at every level."""

    pictures: Tensor  # float32 [N, C, h, w]
    texts: Tensor | FrozenText  # of N captions

    @classmethod
    def of(
        cls, pictures: Source, captions: Captions, count: int
    ) -> tuple[FixedGrid | None, list[Refused]]:
        """At most `count` pictures, evenly spread over the rows (None if there are no good ones),
        and the rows among them that cannot be used and are left out."""
        good: list[tuple[Tensor, Any]] = []
        refused: list[Refused] = []
        for position in spread(len(pictures.rows), count):
            row = pictures.rows[position]
            try:
                good.append((pictures.tensor(position), captions(row.captions[0])))
            except PictureError as error:
                refused.append(Refused(row.key, str(error)))
        if not good:
            return None, refused
        return cls(torch.stack([p for p, _ in good]), stack([t for _, t in good])), refused


def spread(available: int, wanted: int) -> list[int]:
    """At most `wanted` positions, evenly spread over `available`."""
    count = min(available, wanted)
    return [i * available // count for i in range(count)]


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
    """The loss of each picture at each level, float32 [N] on the processor, keyed by its timestep.

    Args:
        place: of the grid's first picture among all that are looked at; a picture's noise is that
            of its place.
    """
    losses: dict[str, Tensor] = {}
    for level in LEVELS:
        timestep = round(level * objective.path.num_train_timesteps)
        found = []
        for first in range(0, len(grid.pictures), batch_size):
            picture = grid.pictures[first : first + batch_size].to(device)
            text = some(grid.texts, slice(first, first + batch_size)).to(device)
            noise = torch.stack(
                [
                    torch.randn(
                        picture.shape[1:],
                        generator=seeded_generator(0, "held-out", place + first + i, timestep),
                    )
                    for i in range(len(picture))
                ]
            ).to(device)
            t = torch.full((len(picture),), float(timestep), device=device)
            output = model(objective.add_noise(picture, noise, t), t, text)
            found.append(objective.loss(output, picture, noise, t).float().cpu())
        losses[str(timestep)] = torch.cat(found)
    return losses


def mean(losses: dict[str, float]) -> float:
    return sum(losses.values()) / len(losses)
