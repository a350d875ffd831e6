"""Whose turn it is where pictures have several sizes: a function of (seed, image count)."""

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.data.order import ImageCountSampler, OneShapePerUpdate

some_buckets = st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any)


def order(counts: list[int], group: int, seed: int = 0, first: int = 0) -> OneShapePerUpdate:
    rows = np.random.default_rng(0).permutation(sum(counts))
    parts = np.split(rows, np.cumsum(counts)[:-1])
    return OneShapePerUpdate([np.sort(part) for part in parts], group, seed, first)


@settings(max_examples=150, deadline=None)
@given(some_buckets, st.integers(1, 17), st.integers(0, 3))
def test_an_update_is_of_one_bucket_and_each_pass_of_a_bucket_a_permutation(
    counts: list[int], group: int, seed: int
) -> None:
    whole = order(counts, group, seed)
    groups = 6 * sum(counts) // group + 20
    seen = [whole.position(count) for count in range(groups * group)]
    bucket_of = {int(row): b for b, rows in enumerate(whole.buckets) for row in rows}
    streams: dict[int, list[int]] = {}
    for g in range(groups):
        update = seen[g * group : (g + 1) * group]
        assert len({bucket_of[row] for row in update}) == 1
        streams.setdefault(bucket_of[update[0]], []).extend(update)
    for bucket, stream in streams.items():
        size = counts[bucket]
        for first in range(0, len(stream) - size + 1, size):
            assert sorted(stream[first : first + size]) == whole.buckets[bucket].tolist()
    # Shares: at any time a bucket is at most two rounds' rounding away from its share.
    for bucket, size in enumerate(counts):
        fair = len(seen) * size / sum(counts)
        assert abs(len(streams.get(bucket, [])) - fair) <= 2 * group + size + group * len(counts)


@settings(max_examples=60, deadline=None)
@given(some_buckets, st.integers(1, 9), st.lists(st.integers(0, 5000), min_size=3, max_size=20))
def test_the_order_is_a_function_of_the_count_alone(
    counts: list[int], group: int, asked: list[int]
) -> None:
    fresh = [order(counts, group).position(count) for count in asked]
    used = order(counts, group)
    assert [used.position(count) for count in asked] == fresh
    carried = pickle.loads(pickle.dumps(used))
    assert [carried.position(count) for count in reversed(asked)] == fresh[::-1]


def test_rounds_are_shuffled_anew_and_so_are_seeds() -> None:
    a, b = order([40, 40, 40], 4), order([40, 40, 40], 4, seed=1)
    turns = [a.whose_turn(g)[0] for g in range(60)]
    assert Counter(turns[:30]) == Counter(turns[30:]) == Counter({0: 10, 1: 10, 2: 10})
    assert turns[:30] != turns[30:]
    assert turns != [b.whose_turn(g)[0] for g in range(60)]
    assert a.groups_before(10**6) == 30 * 10**6  # late in a run it is as quick, and right
    assert len({a.position(4 * 30 * 10**6 + i) for i in range(4)}) == 4


@pytest.mark.parametrize("first", [0, 5])
def test_processes_and_accumulation_share_the_updates_of_one(first: int) -> None:
    asked = order([30, 17, 9], 8, first=first)
    for processes, size, accumulation in [(1, 8, 1), (2, 2, 2), (4, 2, 1), (1, 2, 4)]:
        ranks = [iter(ImageCountSampler(first, size, processes, r)) for r in range(processes)]
        for update in range(12):
            counts = [c for rank in ranks for _ in range(accumulation) for c in next(rank)]
            positions = sorted(asked.position(c) for c in counts)
            expected = range(first + 8 * update, first + 8 * update + 8)
            assert positions == sorted(asked.position(c) for c in expected)
