"""Prompt following: whose picture is nearest, and what of a caption holds."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from limner.config import Config
from limner.data.dataset import ImageError
from limner.data.examples import DecodedImages
from limner.data.open import Data, open_data
from limner.evaluation import prompt_following
from limner.evaluation.prompt_following import (
    Gallery,
    check_shapes,
    rank_drawings,
    ranks_by_split,
    shapes_by_split,
    shared_captions,
)
from limner.evaluation.samples import Drawing, images_of, of_captions, show_truth, some_of_each
from limner.evaluation.splits import OF_DATA, Split


@pytest.fixture
def data(tiny_config: Callable[..., Config]) -> Data:
    return open_data(tiny_config("data.image_size=32", "data.num_samples=60"))


def drawn_as_they_are(data: Data) -> list[Drawing]:
    """Every caption with its real picture as if a model had drawn it."""
    drawings = [d for s in OF_DATA for d in of_captions(images_of(data, s), s, 1000)]
    show_truth(drawings, data)
    for d in drawings:
        assert d.truth is not None
        d.image = Image.fromarray(d.truth)
    return drawings


def test_real_pictures_are_nearest_to_themselves(data: Data) -> None:
    drawings = drawn_as_they_are(data)
    assert rank_drawings(drawings, data) == len(drawings) == 60
    found = ranks_by_split(drawings)
    assert set(found) == set(OF_DATA)
    assert {rank for ranks in found.values() for rank in ranks} == {1}


def test_a_gallery_of_some_ranks_those_that_it_has(data: Data) -> None:
    drawings = drawn_as_they_are(data)
    gallery = Gallery(data)
    gallery.add(Split.HELD_OUT, [1, 0])
    gallery.add(Split.TRAINED, [5])
    assert gallery.places == {(Split.HELD_OUT, 1): 0, (Split.HELD_OUT, 0): 1, (Split.TRAINED, 5): 2}
    gallery.rank([*drawings, Drawing("a red circle", 0, Split.FREE, image=drawings[0].image)])
    ranked = [(d.split, d.position) for d in drawings if d.rank is not None]
    assert set(ranked) == set(gallery.places)


def test_a_limited_gallery_holds_what_was_drawn(data: Data) -> None:
    last = drawn_as_they_are(data)[-1:]
    assert rank_drawings(last, data, most=6) in (6, 7)
    assert last[0].rank == 1


def test_in_limited_time_the_true_pictures_are_read_and_others_evenly(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, read, told = 0.0, list[tuple[bool, int]](), list[tuple[float, int]]()
    load = DecodedImages.load

    def slow(self: DecodedImages, position: int) -> torch.Tensor:
        nonlocal now
        now += 1
        read.append((self is data.trained, position))
        return load(self, position)

    few = drawn_as_they_are(data)[:5]
    monkeypatch.setattr(DecodedImages, "load", slow)
    monkeypatch.setattr(prompt_following.time, "monotonic", lambda: now)
    assert rank_drawings(few, data, progress=lambda *n: told.append(n), seconds=20.5) == 21
    assert {d.rank for d in few} == {1}
    others = [position for trained, position in read[5:] if trained]
    assert max(others) > 0.8 * len(data.trained.rows)
    assert told[-1] == (21, 60)
    now = 0.0
    assert rank_drawings(few, data, seconds=0) == 5
    assert {d.rank for d in few} == {1}


def test_what_cannot_be_decoded_is_no_part_of_a_gallery(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = DecodedImages.load

    def but_one(self: DecodedImages, position: int) -> torch.Tensor:
        if self is data.trained and position == 2:
            raise ImageError("no picture")
        return load(self, position)

    drawings = drawn_as_they_are(data)
    monkeypatch.setattr(DecodedImages, "load", but_one)
    assert rank_drawings(drawings, data) == 59
    missing = [(d.split, d.position) for d in drawings if d.rank is None]
    assert missing == [(Split.TRAINED, 2)]


def test_a_caption_of_two_pictures_is_told(data: Data) -> None:
    gallery = Gallery(data)
    gallery.add(Split.TRAINED, range(4))
    captions = [data.trained.rows[i].captions[0] for i in range(4)]
    assert gallery.shared_captions() == 0
    assert shared_captions([*captions, captions[2]]) == 2


def test_shapes_are_read_back_but_not_what_people_ask_for(data: Data) -> None:
    drawings = drawn_as_they_are(data)
    blank = Image.fromarray(np.zeros((32, 32, 3), np.uint8))
    free = Drawing("whatever people ask for", 0, Split.FREE, image=blank)
    drawings[0].image = blank
    check_shapes([*drawings, free])
    assert free.right is None
    assert drawings[0].right is False
    assert all(d.right for d in drawings[1:])
    found = shapes_by_split([*drawings, free])
    assert set(found) == set(OF_DATA)
    trained = found[Split.TRAINED]
    assert trained["all_right"] == pytest.approx(1 - 1 / trained["count"], abs=1e-4)
    assert found[Split.HELD_OUT]["all_right"] == 1
    assert shapes_by_split([free]) == {}


def test_some_of_each_split_are_spread_over_all(data: Data) -> None:
    drawings = drawn_as_they_are(data)
    some = some_of_each((Split.HELD_OUT, Split.TRAINED), drawings, 3)
    assert [d.split for d in some] == [Split.HELD_OUT] * 3 + [Split.TRAINED] * 3
    count = len(data.trained.rows)
    assert [d.position for d in some[3:]] == [0, count // 3, 2 * count // 3]
