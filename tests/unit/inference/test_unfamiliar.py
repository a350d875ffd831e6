"""Sizes that are far from those of training: a warning before they are drawn."""

import logging
from pathlib import Path

import pytest

from limner.cli import main
from limner.config import Config, load_config
from limner.errors import LimnerError
from limner.inference.generator import ImageGenerator
from limner.inference.unfamiliar import far_in_words


def squares(size: int) -> Config:
    return load_config({"data": {"image_size": size}})


@pytest.mark.parametrize(
    ("height", "width"), [(96, 96), (120, 120), (64, 64), (64, 120), (120, 96)]
)
def test_near_a_trained_size_nothing_is_said(height: int, width: int) -> None:
    assert far_in_words(height, width, squares(96)) is None


def test_of_a_much_larger_one_the_trained_size_is_named_and_what_to_do() -> None:
    assert far_in_words(96, 128, squares(96)) is not None
    said = far_in_words(516, 512, squares(96))
    assert said is not None
    assert said.startswith("512 x 516 pixels are far from what this model was trained at (96 x 96)")
    assert "upscale" in said
    assert "--size (data.image_size)" in said


def test_of_a_much_smaller_one_the_other_way() -> None:
    said = far_in_words(48, 72, squares(96))
    assert said is not None
    assert said.endswith("may be a blur; draw at a trained size and scale the picture down")


def test_with_buckets_a_size_near_any_of_them_is_near() -> None:
    sizes = [[64, 144], [96, 96], [144, 64], [80, 112]]
    config = load_config({"data": {"image_size": 96, "buckets": sizes}, "model": {"patch_size": 8}})
    assert far_in_words(64, 176, config) is None
    assert far_in_words(64, 176, squares(96)) is not None
    said = far_in_words(224, 224, config)
    assert said is not None
    assert "(144 x 64, 96 x 96, 64 x 144, 1 more)" in said


def test_generate_warns_once_and_draws(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["generate", str(trained / "outputs"), "a red circle", "a red circle"]
    out = ["--output", str(tmp_path / "a.png")]
    assert main([*words, *out, "--width", "32"]) == 0
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 1
    assert warned[0].startswith("32 x 16 pixels are far from")
    caplog.clear()
    assert main([*words, *out, "--width", "20"]) == 0
    assert [r for r in caplog.records if r.levelno == logging.WARNING] == []


@pytest.fixture
def drawer(trained: Path) -> ImageGenerator:
    return ImageGenerator(trained / "outputs")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"width": 18}, "--width 18 is not a multiple of 4, the model's patch in pixels; use 16"),
        ({"height": 3}, "--height 3 is not a multiple of 4, the model's patch in pixels; use 4; "),
        ({"height": -5}, "--height -5 is not a multiple of 4, the model's patch in pixels; use 4"),
    ],
)
def test_of_a_size_that_is_no_multiple_both_neighbours_are_named(
    asked: dict[str, int], said: str, drawer: ImageGenerator
) -> None:
    with pytest.raises(LimnerError) as error:
        drawer.generate("a red circle", **asked)  # type: ignore[arg-type]
    assert str(error.value).startswith(said)


def test_and_that_it_is_far_from_training_if_it_is(drawer: ImageGenerator) -> None:
    with pytest.raises(LimnerError, match=r"use 40 or 44; 16 x 42 pixels are far from .* upscale"):
        drawer.plan(42)
    with pytest.raises(LimnerError, match=r"use 16 or 20$"):
        drawer.plan(18)


def test_of_an_unusual_shape_what_would_teach_it_is_named(drawer: ImageGenerator) -> None:
    assert drawer.notes(["a red circle"], aspect_ratio="3:2") == []
    (said,) = drawer.notes(["a red circle"], aspect_ratio="9:1")
    assert said.startswith("36 x 4 pixels are far from what this model was trained at (16 x 16)")
    assert "data.buckets=auto" in said
