"""The data order: a pure function of the seed and the image count.

Nothing here is stateful, so a run resumed at image count 12,800 sees what it would have seen, with
any number of workers, processes, or pictures per micro-batch (as in EDM2, Karras et al. 2024).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio


def seeded_generator(seed: int, *names: int | str) -> torch.Generator:
    """A CPU generator that depends only on the seed and the names, such as ("noise", 1234)."""
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class Order(Protocol):
    """The data order: a pure function of the image count."""

    def position(self, count: int) -> int:
        """Which row is the run's `count`-th picture."""
        ...


@dataclass(frozen=True)
class FullShuffle:
    """Every pass over the rows is one new shuffle of them all."""

    num_rows: int
    seed: int

    def position(self, count: int) -> int:
        return position_of(count, self.num_rows, self.seed)


class OneShapePerUpdate:
    """Pictures of several shapes, with one shape per update.

    Counts are grouped by update, so that the groups depend neither on micro-batches nor on
    processes. Groups come in rounds of about one pass over the rows: in round r a bucket of n rows
    has floor((r + 1) n / G) - floor(r n / G) groups of G, in a newly shuffled order; the k-th of
    them takes the places k G ... k G + G - 1 in the bucket's own endless shuffle. So every row of
    every bucket is seen equally often and no picture is left over.

    Args:
        buckets: the positions of each bucket's rows; one may be empty.
        group: pictures per update.
        first: the count at which a group begins, below `group`. 0, unless a run was resumed with
            another number of pictures per update.
    """

    def __init__(self, buckets: Sequence[np.ndarray], group: int, seed: int, first: int = 0):
        self.buckets, self.group, self.seed, self.first = list(buckets), group, seed, first
        self.seeds = [
            int(torch.randint(2**62, (), generator=seeded_generator(seed, "bucket", bucket)))
            for bucket in range(len(self.buckets))
        ]
        self.passes: dict[int, tuple[int, Tensor]] = {}  # the last one used of each bucket
        self.round: tuple[int, list[tuple[int, int]]] | None = None

    def position(self, count: int) -> int:
        number, place = divmod(count - self.first, self.group)
        bucket, nth = self.whose_turn(number)
        rows = self.buckets[bucket]
        epoch, at = divmod(nth * self.group + place, len(rows))
        known = self.passes.get(bucket)
        if known is None or known[0] != epoch:
            known = epoch, _permutation(epoch, len(rows), self.seeds[bucket])
            self.passes[bucket] = known
        return int(rows[int(known[1][at])])

    def whose_turn(self, number: int) -> tuple[int, int]:
        """For a group of the run by number: its bucket, and how many groups of that bucket came
        before."""
        low, high = 0, (number + 1 + len(self.buckets)) * self.group // self.rows() + 1
        while high - low > 1:  # the last round that begins at or before this group
            middle = (low + high) // 2
            low, high = (middle, high) if self.groups_before(middle) <= number else (low, middle)
        if self.round is None or self.round[0] != low:
            nth = [low * len(rows) // self.group for rows in self.buckets]
            ends = [(low + 1) * len(rows) // self.group for rows in self.buckets]
            turns = [b for b in range(len(nth)) for _ in range(nth[b], ends[b])]
            generator = seeded_generator(self.seed, "round", low)
            shuffled = list[tuple[int, int]]()
            for i in torch.randperm(len(turns), generator=generator).tolist():
                shuffled.append((turns[i], nth[turns[i]]))  # groups of one bucket stay in order
                nth[turns[i]] += 1
            self.round = low, shuffled
        return self.round[1][number - self.groups_before(low)]

    def groups_before(self, round: int) -> int:
        return sum(round * len(rows) // self.group for rows in self.buckets)

    def rows(self) -> int:
        return sum(len(rows) for rows in self.buckets)


def position_of(count: int, num_rows: int, seed: int) -> int:
    """Which of `num_rows` rows is the run's `count`-th picture; every pass is shuffled anew."""
    epoch, place = divmod(count, num_rows)
    return int(_shuffled(epoch, num_rows, seed)[place])


@lru_cache(maxsize=2)
def _shuffled(epoch: int, num_rows: int, seed: int) -> Tensor:
    return _permutation(epoch, num_rows, seed)


def _permutation(epoch: int, num_rows: int, seed: int) -> Tensor:
    return torch.randperm(num_rows, generator=seeded_generator(seed, "order", epoch))


def spread_evenly(count: int, seed: int) -> float:
    """A number in [0, 1) for the `count`-th picture; consecutive counts fill the interval evenly.

    Multiples of the golden ratio, from a start given by the seed. Timesteps drawn this way make a
    batch's gradient less noisy than independent ones (Kingma et al. 2021, arXiv 2107.00630, spread
    them within a batch; here the spread does not depend on the batches).
    """
    return ((_start(seed) + count * GOLDEN) % 2**64) / 2**64


@lru_cache(maxsize=8)
def _start(seed: int) -> int:
    return int(torch.randint(2**62, (), generator=seeded_generator(seed, "times")))


class ImageCountSampler:
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


def evenly_spaced(available: int, wanted: int) -> list[int]:
    """At most `wanted` positions, evenly spread over `available`."""
    count = min(available, wanted)
    return [i * available // count for i in range(count)]
