"""Loss weights by noise level, from the average loss at each.

Where there is almost no noise, it cannot be predicted: the error stays many times that of other
levels, and most of it is chance. EDM2 (Karras et al. 2024, arXiv 2312.02696, equation 21; Kendall
et al. 2018) divides the loss of each level by its average, which a small network beside the model
learns. Here a table holds the averages, and an exponent sets how strongly they count.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from limner.distributed.processes import sum_over_processes

BINS = 32
"""Number of noise levels that are told apart, all of equal width."""
KEPT = 0.95
"""Decay of a level's average loss for each picture seen at that level."""


class LevelBalance:
    """The average loss at each noise level, and the weight of a picture there.

    Args:
        power: 0: all levels have the same weight; 1: all have the same weighted loss; 0.5: halfway
            between (in the logarithm).
        device: where the losses are.
    """

    def __init__(self, power: float, device: torch.device) -> None:
        self.power = power
        self.sums = torch.zeros(BINS, device=device)
        self.counts = torch.zeros(BINS, device=device)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def weights(self, levels: Tensor) -> Tensor:
        """(mean loss of all levels / loss of the picture's level)^power, or 1 while neither is
        known; levels [B] from 0 (clean) to 1 (noise) -> [B]."""
        total = self.sums.sum() / self.counts.sum()
        known = torch.where(self.counts > 0, self.sums / self.counts, total)
        return ((total / known) ** self.power).nan_to_num(1.0, posinf=1.0)[_bins(levels)]

    def see(self, levels: Tensor, losses: Tensor) -> None:
        """Record losses [B] of the current update; `learn` adds them to the averages."""
        if self.power:
            self.seen.append((_bins(levels), losses.detach().float()))

    def learn(self) -> None:
        """Add the losses of a completed update to the averages. Every process must call this."""
        if not self.power:
            return
        counts, sums = torch.zeros_like(self.counts), torch.zeros_like(self.sums)
        for bins, losses in self.seen:
            place = (bins[:, None] == torch.arange(BINS, device=bins.device)).to(losses.dtype)
            counts += place.sum(dim=0)
            sums += losses @ place
        self.forget()
        sum_over_processes(counts, sums)
        # As if the pictures had entered the average one by one, each with their mean loss.
        kept = KEPT**counts
        added = (1 - kept) / (1 - KEPT)
        self.counts = self.counts * kept + added
        self.sums = self.sums * kept + added * sums / counts.clamp(min=1)

    def forget(self) -> None:
        """Drop the recorded losses: the update was skipped or is repeated."""
        self.seen.clear()

    def reset(self) -> None:
        """Return to the state at the start of a run."""
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
