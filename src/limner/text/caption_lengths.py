"""How long captions are in tokens, and how many of them a text encoder reads to their end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

COVERED = 0.995
"""Share of the captions that are to be read whole: one that is far longer than all others would
make every text longer."""
STEP = 8
"""Tokens of which a suggested length is a multiple."""
ROWS = 2000
"""Pictures, about, whose captions are counted at the start of a run."""


class CutsCaptions(Protocol):
    """What reads a limited number of tokens of a caption: a tokenizer, a pretrained encoder."""

    max_length: int
    longest: int
    """The largest `max_length` that it can have."""

    def length(self, caption: str) -> int:
        """Number of tokens, with special ones, before truncation."""
        ...


@dataclass(frozen=True)
class CaptionLengths:
    """Captions by their number of tokens, and how many tokens of each are read.

    Attributes:
        tokens: number of captions of each length.
        pictures: in all, if only the captions of some of them were counted.
    """

    tokens: Counter[int]
    max_length: int
    longest: int
    pictures: int | None = None

    @classmethod
    def of(
        cls, captions: Iterable[str], reader: CutsCaptions, pictures: int | None = None
    ) -> CaptionLengths:
        tokens = Counter(map(reader.length, captions))
        return cls(tokens, reader.max_length, reader.longest, pictures)

    @property
    def count(self) -> int:
        return self.tokens.total()

    @property
    def cut(self) -> int:
        return self.cut_at(self.max_length)

    def cut_at(self, length: int) -> int:
        """How many captions are longer than so many tokens."""
        return sum(n for tokens, n in self.tokens.items() if tokens > length)

    def enough(self) -> int:
        """A `max_length` that reads nearly all captions whole, as far as the reader can."""
        allowed = (1 - COVERED) * self.count
        needed = min(tokens for tokens in self.tokens if self.cut_at(tokens) <= allowed)
        return min(self.longest, -(-needed // STEP) * STEP)

    def in_words(self) -> str | None:
        """How many captions are cut, and what to set; None: none is."""
        cut = self.cut
        if not cut:
            return None
        are = "is" if cut == 1 else "are"
        some = f" counted (of {self.pictures:,} pictures)" if self.pictures else ""
        said = (
            f"{cut:,} of {self.count:,} captions{some} {are} longer than the {self.max_length} "
            "tokens of text_encoder.max_length; what follows is not read"
        )
        if self.max_length >= self.longest:
            return f"{said}, and this text encoder reads no more: shorten them, or use another"
        # Some captions may be so much longer that only the length that is set covers the others.
        better = max(self.enough(), min(self.longest, self.max_length + STEP))
        left = self.cut_at(better)
        all_but = f"all but {left:,}" if left else "all"
        return f"{said}; text_encoder.max_length={better} reads {all_but} whole"


class Captioned(Protocol):
    """A row of a data set."""

    @property
    def captions(self) -> tuple[str, ...]: ...


def lengths_of(rows: Sequence[Captioned], reader: CutsCaptions) -> CaptionLengths:
    """Of all captions of `ROWS` pictures or somewhat more, evenly spread, or of all pictures."""
    every = max(1, len(rows) // ROWS)
    captions = (caption for row in rows[::every] for caption in row.captions)
    return CaptionLengths.of(captions, reader, len(rows) if every > 1 else None)
