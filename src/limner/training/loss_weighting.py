"""Loss weights by noise level, from the average loss at each.

Where there is almost no noise, what noise there is cannot be guessed: the error there stays many
times that of other levels, and most of it is chance. EDM2 (Karras et al. 2024, arXiv 2312.02696,
equation 21; Kendall et al. 2018) divides the loss of each level by what it is on average, which a
small network beside the model learns. Here a table keeps it, and a power says how far to go.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from limner.distributed.processes import sum_over_processes

BINS = 32
"""Levels told apart, alike in width."""
KEPT = 0.95
"""Of a level's average at each picture that is seen there."""


class LevelBalance:
    """What the loss is at each level of noise, and how much a picture there counts.

    Args:
        power: 0, all count alike; 1, all levels have the same loss; 0.5, half of the way (in the
            logarithm).
        device: where the losses are.
    """

    def __init__(self, power: float, device: torch.device) -> None:
        self.power = power
        self.sums = torch.zeros(BINS, device=device)
        self.counts = torch.zeros(BINS, device=device)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def weights(self, levels: Tensor) -> Tensor:
        """(mean loss of all levels / loss of the picture's level)^power, 1 as long as neither is
        known; levels [B] in 0 (clean) to 1 (noise) -> [B]."""
        total = self.sums.sum() / self.counts.sum()
        known = torch.where(self.counts > 0, self.sums / self.counts, total)
        return ((total / known) ** self.power).nan_to_num(1.0, posinf=1.0)[_bins(levels)]

    def see(self, levels: Tensor, losses: Tensor) -> None:
        """Losses [B] of the update under way; they count when it is done."""
        if self.power:
            self.seen.append((_bins(levels), losses.detach().float()))

    def learn(self) -> None:
        """The update is done: its losses are part of the averages. All processes call it."""
        if not self.power:
            return
        counts, sums = torch.zeros_like(self.counts), torch.zeros_like(self.sums)
        for bins, losses in self.seen:
            place = (bins[:, None] == torch.arange(BINS, device=bins.device)).to(losses.dtype)
            counts += place.sum(dim=0)
            sums += losses @ place
        self.forget()
        sum_over_processes(counts, sums)
        # As if each picture had been taken into the average in turn, with the mean of them all.
        kept = KEPT**counts
        added = (1 - kept) / (1 - KEPT)
        self.counts = self.counts * kept + added
        self.sums = self.sums * kept + added * sums / counts.clamp(min=1)

    def forget(self) -> None:
        """The update is left out, or taken again."""
        self.seen.clear()

    def reset(self) -> None:
        """As at the start of a run."""
        self.forget()
        self.sums.zero_()
        self.counts.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.reset()
        self.sums += state["sums"].to(self.sums)
        self.counts += state["counts"].to(self.counts)


def _bins(levels: Tensor) -> Tensor:
    return (levels * BINS).long().clamp(0, BINS - 1)
