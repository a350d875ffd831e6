"""Who is seen when: the order of the pictures, as a function of (seed, image count) alone.

Nothing here is stateful, so a run resumed at image count 12,800 sees what it would have seen, with
any number of workers, processes, or pictures per micro-batch (EDM2, Karras et al. 2024, does so).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio


def seeded_generator(seed: int, *names: int | str) -> torch.Generator:
    """A CPU generator that depends on the seed and the names only, such as ("noise", 1234)."""
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class Order(Protocol):
    """Whose turn it is: a pure function of the count."""

    def position(self, count: int) -> int:
        """Which row is the run's `count`-th picture."""
        ...


@dataclass(frozen=True)
class FullShuffle:
    """Every pass over the rows is shuffled anew, as a whole."""

    num_rows: int
    seed: int

    def position(self, count: int) -> int:
        return position_of(count, self.num_rows, self.seed)


def position_of(count: int, num_rows: int, seed: int) -> int:
    """Which of `num_rows` rows is the run's `count`-th picture; every pass is shuffled anew."""
    epoch, place = divmod(count, num_rows)
    return int(_shuffled(epoch, num_rows, seed)[place])


@lru_cache(maxsize=2)
def _shuffled(epoch: int, num_rows: int, seed: int) -> Tensor:
    return torch.randperm(num_rows, generator=seeded_generator(seed, "order", epoch))


def spread_evenly(count: int, seed: int) -> float:
    """A number in [0, 1) for the `count`-th picture; any run of counts fills the interval evenly.

    Multiples of the golden ratio, from a start that the seed gives. Times of noise drawn so make a
    batch's gradient less noisy than independent ones do (Kingma et al. 2021, arXiv 2107.00630,
    spread them within a batch; here they are spread whatever the batch is).
    """
    return ((_start(seed) + count * GOLDEN) % 2**64) / 2**64


@lru_cache(maxsize=8)
def _start(seed: int) -> int:
    return int(torch.randint(2**62, (), generator=seeded_generator(seed, "times")))


class CountBatches:
    """Endless micro-batches of image counts for one process, from `start` on.

    Each update covers the next `batch_size * accumulation * processes` counts; the processes take
    turns micro-batch by micro-batch, so the union over processes is always the same.
    """

    def __init__(self, start: int, batch_size: int, processes: int = 1, rank: int = 0) -> None:
        self.start, self.batch_size = start, batch_size
        self.processes, self.rank = processes, rank

    def __iter__(self) -> Iterator[list[int]]:
        first = self.start + self.rank * self.batch_size
        while True:
            yield list(range(first, first + self.batch_size))
            first += self.processes * self.batch_size
