"""The data set "shapes" and the checker that reads its pictures back."""

import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageFilter

from limner.data.builtin.shapes import (
    COLOURS,
    HELD_OUT_PAIRS,
    SHAPES,
    Scene,
    ShapesImages,
    Thing,
    all_scenes,
    caption,
    captions,
    draw,
    parse,
)
from limner.data.builtin.shapes_checker import check
from limner.errors import LimnerError


@pytest.fixture(scope="module")
def images():
    return ShapesImages(num_samples=600, seed=0)


def some_scenes(count, seed=0):
    scenes = all_scenes()
    return [scenes[i] for i in np.random.default_rng(seed).permutation(len(scenes))[:count]]


def test_parse_is_the_inverse_of_both_phrasings():
    texts = [text for scene in all_scenes() for text in captions(scene)]
    assert len(set(texts)) == 2 * len(all_scenes()) == 2 * (240 + 48 + 3840)
    for scene in all_scenes():
        assert [parse(text) for text in captions(scene)] == [scene, scene]
    assert parse("  Two RED  crosses ") == Scene((Thing("red", "cross", "small"),), "two")


def test_captions_read_like_english():
    square = Thing("blue", "square", "large")
    circle = Thing("red", "circle", "small")
    assert captions(Scene((square,), "in the center")) == (
        "a large blue square in the center",
        "in the center, a large blue square",
    )
    assert captions(Scene((circle, square), "left of")) == (
        "a small red circle left of a large blue square",
        "a large blue square right of a small red circle",
    )
    assert caption(Scene((replace(circle, shape="cross"),), "three")) == "three red crosses"


def test_a_caption_outside_the_grammar_is_an_error_that_shows_the_grammar():
    with pytest.raises(LimnerError, match=r"a pink circle.*two blue squares.*purple"):
        parse("a pink circle")


def test_a_held_out_pair_is_never_trained_though_its_words_are(images):
    trained = {
        (thing.colour, thing.shape)
        for row in images.rows
        if row.held_out is False
        for thing in parse(row.captions[0]).things
    }
    everything = {(colour, shape) for colour in COLOURS for shape in SHAPES}
    assert trained == everything - HELD_OUT_PAIRS
    share = np.mean([row.held_out for row in images.rows])
    assert 0.08 <= share <= 0.15
    assert str(sum(row.held_out for row in images.rows)) in images.description


def test_keys_are_unique_and_a_longer_set_begins_with_the_shorter(images):
    assert len({row.key for row in images.rows}) == 600
    assert ShapesImages(num_samples=50, seed=0).rows == images.rows[:50]
    assert ShapesImages(num_samples=50, seed=1).rows != images.rows[:50]
    assert images.rows[0].held_out is not None


def test_num_samples_must_be_positive():
    with pytest.raises(LimnerError, match="num_samples is 0"):
        ShapesImages(num_samples=0)


def test_a_row_is_always_the_same_picture_and_its_scene_has_several(images):
    row = images.rows[0]
    again = pickle.loads(pickle.dumps(images))
    assert np.array_equal(images.load(row, 32), again.load(row, 32))
    scene = parse(row.captions[0])
    assert np.array_equal(images.load(row, 32), draw(scene, 32, 0))
    assert not np.array_equal(draw(scene, 32, 0), draw(scene, 32, 1))
    assert images.load(row, 48).shape == (48, 48, 3)
    assert images.load(row, 48).dtype == np.uint8


def test_the_checker_reads_every_scene_at_32_pixels():
    wrong = [
        caption(scene) for scene in all_scenes() if not check(scene, draw(scene, 32)).all_right
    ]
    assert wrong == []


def test_the_checker_reads_scenes_at_64_pixels_from_captions():
    for scene in some_scenes(150):
        for text in captions(scene):
            assert check(text, draw(scene, 64, 3)).all_right, text


@pytest.mark.parametrize(("blur", "noise"), [(0.0, 20), (0.5, 10), (0.7, 15)])
def test_the_checker_tolerates_blur_and_noise(blur, noise):
    """`blur` is a Gaussian's sigma in pixels, `noise` another's in grey levels."""
    rng = np.random.default_rng(0)
    right = []
    for scene in some_scenes(300):
        image = Image.fromarray(draw(scene, 32, 5)).filter(ImageFilter.GaussianBlur(blur))
        picture = np.array(image) + rng.normal(0, noise, (32, 32, 3))
        right.append(check(scene, picture.clip(0, 255).astype(np.uint8)).all_right)
    assert np.mean(right) >= 0.97


def test_the_checker_rejects_the_picture_of_another_scene():
    scenes = some_scenes(400)
    for scene, other in pairwise(scenes):
        assert not check(scene, draw(other, 32)).all_right, (caption(scene), caption(other))


@pytest.mark.parametrize(
    ("drawn", "wrong"),
    [
        ("a small blue square at the top left", "colour"),
        ("a small red circle at the top left", "shape"),
        ("a large red square at the top left", "size"),
        ("a small red square in the center", "position"),
        ("a small red square at the bottom left", "position"),
    ],
)
def test_one_wrong_word_is_the_one_part_that_does_not_hold(drawn, wrong):
    holds = check("a small red square at the top left", draw(parse(drawn), 32)).holds
    assert [part for part, right in holds.items() if not right] == [wrong]


@pytest.mark.parametrize(
    ("drawn", "wrong"),
    [
        ("a large blue square left of a small red circle", ["relation"]),
        ("a small red circle above a large blue square", ["relation"]),
        ("a large red circle left of a large blue square", ["size"]),
        ("a small red square left of a large blue circle", ["shape"]),
        ("a small red circle left of a large green square", ["colour"]),
    ],
)
def test_parts_of_a_relation_are_told_apart(drawn, wrong):
    holds = check("a small red circle left of a large blue square", draw(parse(drawn), 32)).holds
    assert [part for part, right in holds.items() if not right] == wrong


def test_a_wrong_count_is_seen_and_so_is_an_empty_picture():
    assert not check("two red circles", draw(parse("three red circles"), 32)).holds["count"]
    assert not check("three red circles", draw(parse("two red circles"), 32)).holds["count"]
    blank = check("two red circles", np.full((32, 32, 3), 255, np.uint8))
    assert blank.found == ()
    assert not any(blank.holds.values())


def test_a_speck_is_not_a_thing_but_a_blot_is():
    image = draw(parse("a large black cross at the top left"), 32)
    image[28:30, 28:30] = 0
    assert check("a large black cross at the top left", image).all_right
    image[26:30, 26:30] = 0
    assert not check("a large black cross at the top left", image).holds["count"]


def test_any_picture_can_be_checked():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert not check("a small red circle in the center", noise).all_right
