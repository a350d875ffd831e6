"""How many captions are cut, and what to set."""

from collections.abc import Sequence

import pytest

from limner.data.dataset import Row
from limner.text.caption_lengths import ROWS, CaptionLengths, lengths_of
from limner.text.tokenizer import CaptionTokenizer


class Words:
    """Reads words."""

    def __init__(self, max_length: int, longest: int = 1000) -> None:
        self.max_length, self.longest = max_length, longest

    def length(self, caption: str) -> int:
        return len(caption.split())


def said(lengths: Sequence[int], max_length: int, longest: int = 1000) -> str | None:
    captions = (" ".join(["word"] * length) for length in lengths)
    return CaptionLengths.of(captions, Words(max_length, longest)).in_words()


def test_nothing_is_said_where_every_caption_is_read_whole() -> None:
    assert said([1, 5, 32], 32) is None
    assert said([], 32) is None


def test_how_many_are_cut_and_what_reads_them_is_said() -> None:
    assert said([10] * 6 + [33, 40], 32) == (
        "2 of 8 captions are longer than the 32 tokens of text_encoder.max_length; what follows is "
        "not read; text_encoder.max_length=40 reads all whole"
    )
    one = said([10] * 7 + [41], 32)
    assert one is not None
    assert one.startswith("1 of 8 captions is longer")
    assert "text_encoder.max_length=48 reads all whole" in one


def test_one_that_is_far_longer_than_all_others_does_not_set_the_length() -> None:
    found = said([10] * 500 + [33] * 498 + [900] * 2, 32)
    assert found is not None
    assert found.startswith("500 of 1,000 captions are longer")
    assert "text_encoder.max_length=40 reads all but 2 whole" in found
    alone = said([10] * 998 + [900] * 2, 32)
    assert alone is not None
    assert "text_encoder.max_length=40 reads all but 2 whole" in alone


def test_what_an_encoder_cannot_read_is_not_suggested() -> None:
    below = said([10] * 8 + [100] * 2, 32, longest=77)
    assert below is not None
    assert "text_encoder.max_length=77 reads all but 2 whole" in below
    at_the_limit = said([10] * 8 + [100] * 2, 77, longest=77)
    assert at_the_limit is not None
    assert "2 of 10 captions" in at_the_limit
    assert "max_length=" not in at_the_limit
    assert "shorten them" in at_the_limit


def test_every_caption_of_a_row_counts_and_of_many_rows_some() -> None:
    rows = [Row(str(i), ("a b", "a b c d")) for i in range(10)]
    found = lengths_of(rows, Words(3))
    assert (found.cut, found.count, found.pictures) == (10, 20, None)
    many = [Row(str(i), ("a b c d",)) for i in range(10 * ROWS)]
    found = lengths_of(many, Words(3))
    assert (found.cut, found.count, found.pictures) == (ROWS, ROWS, 10 * ROWS)
    words = found.in_words()
    assert words is not None
    assert f"{ROWS:,} of {ROWS:,} captions counted (of {10 * ROWS:,} pictures) are" in words


@pytest.mark.parametrize("length", [4, 16])
def test_the_built_in_tokenizer_is_counted_as_it_reads(length: int) -> None:
    captions = ["a red circle and a blue square", "a dog"]
    reader = CaptionTokenizer.learn(captions, 400, length)
    found = CaptionLengths.of(captions, reader)
    assert found.cut == sum(len(reader.tokenizer.encode(c).ids) + 1 > length for c in captions)
