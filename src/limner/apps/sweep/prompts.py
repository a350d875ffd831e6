"""Which captions settings are chosen on, and which others the choice is reported on.

Prompts that people type are not those of the training pictures, so the choice is made on captions
that were never trained: those of one half of the held-out rows, by a hash of each key. The other
half says how good the choice is, with noise of other seeds; no setting was chosen by it. Where that
first half is smaller than what is to be drawn, trained captions fill up, for a choice by a handful
of captions fits that handful.

Whoever reports on all held-out pictures of a checkpoint that was swept reports on some that a
choice among a hundred settings was made by (no weight was trained on them): `swept_note` is the
sentence about it that belongs beside such numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limner.data.dataset import PictureError, Row
from limner.data.examples import Pictures
from limner.data.open import Data
from limner.data.order import evenly_spaced
from limner.data.split import in_second_half, sampling_rank
from limner.errors import LimnerError

RANGE = 1000
"""Pictures among which a drawing's true one is looked for, at most, those of its part included."""
FEWEST = 8
"""Captions that a report needs; with fewer held out, trained ones that nothing was chosen on fill
up."""
REPORTED_SEEDS = 1_000_000
"""The first seed of what is reported."""


@dataclass(frozen=True)
class Part:
    """Captions to draw, in an order that any first few of are a fair sample, and their pictures.

    Attributes:
        name: "chosen" or "reported".
        keys: of the rows.
        held_out: how many of them were held out.
        captions: main captions.
        pictures: uint8 [N, S, S, 3].
        first_seed: drawing i has seed first_seed + i, and caption i modulo N.
    """

    name: str
    keys: tuple[str, ...]
    held_out: int
    captions: tuple[str, ...]
    pictures: Tensor
    first_seed: int


def parts_of(data: Data, pictures: int) -> tuple[Part, Part]:
    """What settings are chosen on, and what is reported on; no row is in both.

    Args:
        pictures: to be drawn of each, at most.

    Raises:
        LimnerError: there are too few pictures for a choice.
    """
    halves: list[list[tuple[Pictures, int]]] = [[], []]
    for i, row in enumerate(data.held_out.rows):
        halves[in_second_half(row.key)].append((data.held_out, i))
    trained = [(data.trained, i) for i in _shuffled(data.trained.rows)]
    chosen, reported = halves
    fill = max(0, pictures - len(chosen))
    chosen = chosen[:pictures] + trained[:fill]
    reported = reported[:pictures]
    if len(reported) < FEWEST:
        reported += trained[fill : fill + FEWEST - len(reported)]
    return (
        _part("chosen", data, chosen, 0),
        _part("reported", data, reported, REPORTED_SEEDS),
    )


def _part(name: str, data: Data, members: Sequence[tuple[Pictures, int]], first_seed: int) -> Part:
    good: list[tuple[Row, Tensor, bool]] = []
    for source, i in members:
        try:
            good.append((source.rows[i], source.load(i), source is data.held_out))
        except PictureError:
            continue  # training has told of it, and its row is in refused.jsonl
    if len(good) < 2:
        raise LimnerError(
            f"settings are {name} by real pictures, and {data.set.name} has {len(good)} for that; "
            "a sweep takes at least two of them, better 64"
        )
    good.sort(key=lambda g: sampling_rank(g[0].key))
    return Part(
        name,
        tuple(row.key for row, _, _ in good),
        sum(held_out for _, _, held_out in good),
        tuple(row.captions[0] for row, _, _ in good),
        torch.stack([picture for _, picture, _ in good]),
        first_seed,
    )


def range_of(data: Data, part: Part) -> Tensor | None:
    """All pictures among which a drawing's true one is looked for, those of the part first.

    uint8 [M, S, S, 3]; None where two of them have the same caption, so that no one of them is the
    true one.
    """
    own, captions, pictures = set(part.keys), list(part.captions), [part.pictures]
    for source in (data.held_out, data.trained):
        others = [i for i in range(len(source.rows)) if source.rows[i].key not in own]
        for place in evenly_spaced(len(others), RANGE - len(captions)):
            try:
                pictures.append(source.load(others[place])[None])
            except PictureError:
                continue
            captions.append(source.rows[others[place]].captions[0])
    if len(set(captions)) < len(captions):
        return None
    return torch.cat(pictures)


def _shuffled(rows: Sequence[Row]) -> list[int]:
    """Positions in an order that depends on keys alone."""
    return sorted(range(len(rows)), key=lambda i: sampling_rank(rows[i].key))
