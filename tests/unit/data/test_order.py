"""Who is seen when, and how: all of it a function of (seed, image count)."""

import pickle
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from limner.data.dataset import ImageError, Refused, Row
from limner.data.examples import Batch, DecodedImages, Example, TrainingExamples
from limner.data.images import to_tensor
from limner.data.order import ImageCountSampler, position_of, seeded_generator
from limner.errors import LimnerError
from limner.text.tokenizer import CaptionTokenizer

CAPTIONS = ("main", "second", "third")


class Squares:
    """Row i is one colour in all but its left half; rows in `broken` cannot be decoded."""

    name = description = "squares"
    refused: tuple[Refused, ...] = ()

    def __init__(self, count: int, broken: tuple[int, ...] = ()) -> None:
        self.rows = [Row(str(i), tuple(f"{c} {i}" for c in CAPTIONS)) for i in range(count)]
        self.broken = broken
        self.loaded: list[str] = []

    def load(self, row: Row, image_size: int) -> np.ndarray:
        if int(row.key) in self.broken:
            raise ImageError(f"{row.key}: broken")
        self.loaded.append(row.key)
        image = np.full((image_size, image_size, 3), int(row.key) + 1, dtype=np.uint8)
        image[:, : image_size // 2] = 0
        return image


def examples(
    squares: Squares,
    seed: int = 0,
    caption_dropout: float = 0.0,
    main_caption_share: float = 0.5,
    horizontal_flip: float = 0.0,
    memory_mb: int = 1,
    image_size: int = 4,
) -> TrainingExamples:
    images = DecodedImages(squares, squares.rows, image_size, memory_mb)
    tokenizer = CaptionTokenizer.learn(CAPTIONS, 300, 16)
    return TrainingExamples(
        images, tokenizer, seed, caption_dropout, main_caption_share, horizontal_flip
    )


def shown(example: Example) -> int:
    """The row whose picture it is."""
    return round((float(example.image.max()) + 1) * 127.5) - 1


def said(example: Example, data: TrainingExamples) -> str:
    return data.captions.tokenizer.decode([i for i in example.text.tolist() if i > 1]).strip()


def same(a: Example, b: Example) -> bool:
    names = ("image", "text", "noise", "u")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


# Order


@pytest.mark.parametrize("num_rows", [1, 7, 100])
def test_every_pass_sees_every_row_once(num_rows: int) -> None:
    for epoch in (0, 1, 9):
        counts = range(epoch * num_rows, (epoch + 1) * num_rows)
        assert sorted(position_of(c, num_rows, seed=3) for c in counts) == list(range(num_rows))


def test_order_depends_on_seed_and_count_and_not_on_who_asked_before() -> None:
    counts = [5, 950, 301, 0, 449, 5, 20_000, 301]
    alone = []
    for count in counts:
        position_of(count * 7, 50, seed=1)  # other questions in between
        alone.append(position_of(count, 100, seed=0))
    assert alone == [position_of(count, 100, seed=0) for count in counts]
    first, second, other_seed = (
        [position_of(start + i, 100, seed) for i in range(100)]
        for start, seed in ((0, 0), (100, 0), (0, 1))
    )
    assert first != second
    assert first != other_seed
    assert first != list(range(100))


@pytest.mark.parametrize("start", [0, 24])
def test_any_number_of_processes_covers_the_same_counts_in_each_update(start: int) -> None:
    for processes, batch_size, accumulation in [
        (1, 8, 1),
        (1, 4, 2),
        (2, 4, 1),
        (2, 2, 2),
        (4, 2, 1),
    ]:
        ranks = [iter(ImageCountSampler(start, batch_size, processes, r)) for r in range(processes)]
        for update in range(3):
            counts = [c for rank in ranks for batch in islice(rank, accumulation) for c in batch]
            first = start + 8 * update
            assert sorted(counts) == list(range(first, first + 8))


def test_generators_of_other_names_or_seeds_share_nothing() -> None:
    names = [(s, n, c) for s in (0, 1) for n in ("example", "order") for c in (0, 1, 10)]
    draws = {float(torch.rand((), generator=seeded_generator(s, n, c))) for s, n, c in names}
    assert len(draws) == len(names)
    first, again = (torch.rand(3, generator=seeded_generator(5, "a", 7)) for _ in range(2))
    assert torch.equal(first, again)


# Examples


def test_an_example_is_the_same_in_any_worker_and_any_order() -> None:
    data = examples(Squares(10), caption_dropout=0.3, horizontal_flip=0.5)
    expected = [data[count] for count in range(24)]
    again = examples(Squares(10), caption_dropout=0.3, horizontal_flip=0.5, memory_mb=0)
    sent = pickle.loads(pickle.dumps(data))
    for count in (23, 3, 11, 0, 3):
        assert same(again[count], expected[count])
        assert same(sent[count], expected[count])
    loader = DataLoader(
        examples(Squares(10), caption_dropout=0.3, horizontal_flip=0.5),
        batch_sampler=ImageCountSampler(8, 4),
        num_workers=2,
        collate_fn=Batch.of,
    )
    for first, batch in zip((8, 12, 16, 20), loader, strict=False):
        wanted = Batch.of(expected[first : first + 4])
        for name in ("image", "text", "noise", "u"):
            assert torch.equal(getattr(batch, name), getattr(wanted, name))


def test_another_seed_is_another_run() -> None:
    a, b = examples(Squares(50), seed=0), examples(Squares(50), seed=1)
    assert not any(torch.equal(a[c].noise, b[c].noise) or a[c].u == b[c].u for c in range(20))
    assert [shown(a[c]) for c in range(20)] != [shown(b[c]) for c in range(20)]


def test_noise_is_normal_and_no_two_pictures_share_it() -> None:
    data = examples(Squares(3), image_size=16)
    noise = torch.stack([data[count].noise for count in range(300)])
    assert noise.dtype == torch.float32
    values = noise.flatten().double()
    assert abs(float(values.mean())) < 0.01
    assert float(values.std()) == pytest.approx(1, abs=0.01)
    for limit, share in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
        assert float((values.abs() < limit).double().mean()) == pytest.approx(share, abs=0.005)
    correlation = noise.flatten(1) @ noise.flatten(1).T / 768
    assert float((correlation - torch.eye(300)).abs().max()) < 0.25


def test_noise_levels_are_spread_evenly() -> None:
    data = examples(Squares(3))
    u = torch.stack([data[count].u for count in range(2000)])
    assert float((u.sort().values - torch.arange(2000) / 2000).abs().max()) < 0.002
    # So are those of any batch: independent ones leave gaps of 4 / 32 and more.
    for first in (0, 32, 1000, 1717):
        batch = u[first : first + 32].sort().values
        gaps = torch.diff(batch, append=batch[:1] + 1)
        assert float(gaps.min()) > 0.2 / 32
        assert float(gaps.max()) < 2.7 / 32
    # The order of pictures is not the order of times: no picture keeps to some of the levels.
    whole = examples(Squares(8))
    seen: dict[int, list[float]] = {}
    for count in range(800):
        seen.setdefault(position_of(count, 8, seed=0), []).append(float(whole[count].u))
    for times in seen.values():
        levels = torch.tensor(times).sort().values
        assert float((levels - torch.arange(100) / 100).abs().max()) < 0.13


def test_captions_are_chosen_and_dropped_in_their_shares() -> None:
    data = examples(Squares(5), caption_dropout=0.2, main_caption_share=0.5)
    captions = [said(data[count], data) for count in range(2000)]
    shares = {word: sum(c.startswith(word) for c in captions) / len(captions) for word in CAPTIONS}
    assert captions.count("") / len(captions) == pytest.approx(0.2, abs=0.03)
    assert shares["main"] == pytest.approx(0.8 * 0.5, abs=0.04)
    assert shares["second"] == pytest.approx(0.8 * 0.25, abs=0.03)
    assert shares["third"] == pytest.approx(0.8 * 0.25, abs=0.03)


def test_a_caption_belongs_to_its_picture() -> None:
    data = examples(Squares(7))
    for count in range(30):
        assert said(data[count], data).split()[1] == str(shown(data[count]))
        assert shown(data[count]) == position_of(count, 7, seed=0)


@pytest.mark.parametrize(("share", "allowed"), [(1.0, {"main"}), (0.0, {"second", "third"})])
def test_the_main_caption_can_be_all_or_none(share: float, allowed: set[str]) -> None:
    data = examples(Squares(5), main_caption_share=share)
    assert {said(data[count], data).split()[0] for count in range(60)} == allowed


def test_turning_on_one_thing_changes_nothing_else() -> None:
    plain = examples(Squares(5))
    dropping = examples(Squares(5), caption_dropout=0.5)
    flipping = examples(Squares(5), horizontal_flip=0.5)
    dropped = flipped = 0
    for count in range(100):
        a, b, c = plain[count], dropping[count], flipping[count]
        for other in (b, c):
            assert torch.equal(a.noise, other.noise)
            assert a.u == other.u
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.text, c.text)
        dropped += said(b, dropping) == ""
        assert said(b, dropping) in ("", said(a, plain))
        flipped += torch.equal(a.image.flip(-1), c.image)
        assert torch.equal(a.image, c.image) or torch.equal(a.image.flip(-1), c.image)
    assert 30 < dropped < 70
    assert 30 < flipped < 70


def test_pictures_kept_in_memory_are_decoded_once() -> None:
    kept, again = Squares(4), Squares(4)
    for squares, memory_mb in ((kept, 1), (again, 0)):
        data = examples(squares, memory_mb=memory_mb)
        images = [data[count].image for count in range(12)]
        expected = to_tensor(squares.load(squares.rows[position_of(11, 4, 0)], 4))
        assert torch.equal(images[11], expected)
    assert len(kept.loaded) - 1 == 4
    assert len(again.loaded) - 1 == 12


# Pictures that cannot be decoded


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_picture_is_passed_over_and_moves_no_other(num_workers: int) -> None:
    good, bad = examples(Squares(10)), examples(Squares(10, broken=(3, 4)))
    loader = DataLoader(
        bad,
        batch_sampler=ImageCountSampler(0, 5),
        num_workers=num_workers,
        collate_fn=Batch.of,
    )
    refused: list[Refused] = []
    for first, batch in zip(range(0, 40, 5), loader, strict=False):
        refused += batch.refused
        for i in range(5):
            expected = good[first + i]
            if shown(expected) in (3, 4):  # the next good row stands in, with its own caption
                assert torch.equal(batch.image[i], to_tensor(good.images.load(5)))
                caption = said(expected, good).split()[0]
                assert torch.equal(batch.text[i], bad.captions(f"{caption} 5"))
            else:
                assert torch.equal(batch.image[i], expected.image)
                assert torch.equal(batch.text[i], expected.text)
            assert torch.equal(batch.noise[i], expected.noise)
            assert batch.u[i] == expected.u
    assert {row.key for row in refused} == {"3", "4"}
    if num_workers == 0:  # two workers may meet the same row at the same time
        assert len(refused) == 2
    assert refused[0].reason.endswith("broken")


def test_no_good_picture_at_all_is_an_error() -> None:
    data = examples(Squares(3, broken=(0, 1, 2)))
    for _ in range(2):  # also when all are already known to be bad
        with pytest.raises(LimnerError, match="none of the 3 pictures could be used"):
            data[0]
