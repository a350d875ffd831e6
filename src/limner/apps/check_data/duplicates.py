"""Rows whose pictures are the same or nearly: within a part of the split, and across it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from limner.apps.check_data.findings import Finding
from limner.apps.check_data.similarity import Compared
from limner.data.dataset import ImageDataset, Row
from limner.messages import shorten


def find_duplicates(
    dataset: ImageDataset, which: Sequence[int], held_out: np.ndarray, compared: Compared
) -> Iterator[Finding]:
    """One finding for each row that is like an earlier one; first what leaks across the split.

    Args:
        which: the row of the set that each compared picture is of.
        held_out: bool [N], of each compared picture.
    """

    def row(index: int) -> Row:
        return dataset.rows[which[index]]

    def finding(kind: str, index: int, other: int, said: str) -> Finding:
        mine = row(index)
        path = dataset.path(mine)
        return Finding(kind, mine.key, said, str(path) if path else None, row(other).key)

    alone = compared.there.copy()  # rows of which no earlier one of the same part is the same
    for group in compared.same():
        out, trained = group[held_out[group]], group[~held_out[group]]
        if len(trained):
            for index in out:
                said = f"held out, and trained as {row(trained[0]).key}"
                yield finding("split-leak", index, trained[0], said)
            alone[out] = False
        else:
            trained = out
        for other, index in pairwise(trained):
            first = trained[0]
            alone[index] = False
            if _share_a_caption(row(index), [row(i) for i in trained if i < index]):
                yield finding("duplicate", index, first, f"the same pixels as {row(first).key}")
            else:
                theirs, ours = (shorten(row(i).captions[0]) for i in (other, index))
                said = f"the same pixels as {row(other).key}, which is {theirs}, and this is {ours}"
                yield finding("conflicting-captions", index, other, said)

    leaks: dict[int, int] = {}
    earlier: dict[int, int] = {}
    for first, second in compared.nearly(np.flatnonzero(alone)):
        if held_out[first] != held_out[second]:
            out_row, other = (first, second) if held_out[first] else (second, first)
            leaks[out_row] = min(other, leaks.get(out_row, other))
        else:
            earlier[second] = min(first, earlier.get(second, first))
    for index, other in sorted(leaks.items()):
        said = f"held out, and trained in nearly the same form as {row(other).key}"
        yield finding("near-split-leak", index, other, said)
    for index, other in sorted(earlier.items()):
        if index not in leaks:
            yield finding("near-duplicate", index, other, f"nearly the same as {row(other).key}")


def _share_a_caption(row: Row, others: Sequence[Row]) -> bool:
    known = {_folded(text) for other in others for text in other.captions}
    return any(_folded(text) in known for text in row.captions)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")
