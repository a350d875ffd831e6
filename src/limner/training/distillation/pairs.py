"""What a student learns from: pairs of states of one trajectory."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from limner.config import Config
from limner.data.dataset import ImageError, Refused
from limner.data.examples import Captions, Example
from limner.data.order import FullShuffle, seeded_generator
from limner.errors import LimnerError
from limner.training.distillation.trajectories import Trajectories

TO_THE_END = 2 / 3
"""Share of the pairs that begin at pure noise which end at the picture."""
MOST_DAMAGED = 100


class TrajectoryPairs(Dataset[Example]):
    """Pairs by image count, the same whoever asks and whenever.

    An `Example` has the later state, at r, as its image, the earlier one, at s > r, as its noise,
    and u [2] = (s, r) in timesteps.
    """

    def __init__(self, trajectories: Trajectories, captions: Captions, config: Config) -> None:
        self.trajectories, self.captions = trajectories, captions
        self.seed, self.settings = config.training.seed, config.distill
        self.order = FullShuffle(len(trajectories), self.seed)

    def __getitem__(self, count: int) -> Example:
        generator = seeded_generator(self.seed, "pair", count)
        uniform = torch.rand(4, generator=generator).tolist()
        dropout_seed = torch.randint(-(2**31), 2**31, (), generator=generator).to(torch.int32)
        number, refused = self.order.position(count), []
        while True:
            try:
                states = self.trajectories.states(number)
                text = self.captions(self.trajectories.drawings[number].caption)
                break
            except ImageError as error:
                refused.append(Refused(f"trajectory {number}", str(error)))
                if len(refused) == min(MOST_DAMAGED, len(self.trajectories)):
                    raise LimnerError(
                        f"{len(refused)} trajectories in a row cannot be used; the last: {error}"
                    ) from None
                number = (number + 1) % len(self.trajectories)
        i, j = self.pair(*uniform[:2])
        times = self.trajectories.timesteps[[i, j]].float()
        return Example(states[j], text, states[i], times, dropout_seed, tuple(refused))

    def pair(self, kind: float, which: float) -> tuple[int, int]:
        import os
        shares = [float(x) for x in os.environ.get("SHARES", "0.4,0.3,0.2,0.1").split(",")]
        steps = len(self.trajectories.timesteps) - 1
        n, total = 1, 0.0
        for k, share in enumerate(shares):
            total += share
            n = 2**k
            if kind < total:
                break
        part = int(which * n)
        return part * steps // n, (part + 1) * steps // n
