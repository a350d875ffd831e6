"""What a student learns from: pairs of states of one trajectory.

They are the steps of drawings in the numbers of steps that the student is for, and no others: where
any two states made a pair, few of them were of use (docs/distill.md).
"""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from limner.config import Config
from limner.data.dataset import ImageError, Refused
from limner.data.examples import Captions, Example
from limner.data.order import FullShuffle, seeded_generator
from limner.errors import LimnerError
from limner.training.distillation.trajectories import Trajectories

FINEST = 1 / 3
"""How often pairs are a step of the teacher, compared with those for any other number of steps:
hardly anybody draws in so many."""
MOST_DAMAGED = 100


class TrajectoryPairs(Dataset[Example]):
    """Pairs by image count, the same whoever asks and whenever.

    An `Example` has the later state, at r, as its image, the earlier one, at s > r, as its noise,
    and u [2] = (s, r) in timesteps, or [3] with the guidance scale of the trajectory.
    """

    def __init__(self, trajectories: Trajectories, captions: Captions, config: Config) -> None:
        self.trajectories, self.captions = trajectories, captions
        self.seed = config.training.seed
        self.numbers = config.distill.numbers_of_steps
        self.order = FullShuffle(len(trajectories), self.seed)

    def __getitem__(self, count: int) -> Example:
        generator = seeded_generator(self.seed, "pair", count)
        uniform = torch.rand(2, generator=generator).tolist()
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
        i, j = self.pair(*uniform)
        told = self.trajectories.timesteps[[i, j]].float()
        scale = self.trajectories.drawings[number].guidance
        if scale is not None:
            told = torch.cat([told, torch.tensor([scale])])
        return Example(states[j], text, states[i], told, dropout_seed, tuple(refused))

    def pair(self, kind: float, which: float) -> tuple[int, int]:
        """Indices i < j of two states, from two uniform numbers in [0, 1)."""
        place = kind * (len(self.numbers) - 1 + FINEST)
        steps = self.numbers[min(int(place), len(self.numbers) - 1)]
        whole, part = self.numbers[-1], int(which * steps)
        return part * whole // steps, (part + 1) * whole // steps
