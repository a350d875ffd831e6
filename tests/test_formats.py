"""The same pictures in every format: the same rows, a run that trains, and goes on exactly."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from emoji_formats import COUNT, EXAMPLES, SIDE, emoji, files, settings, write
from PIL import Image
from test_resume import differing, elsewhere, run

from limner.config import Config, load_config
from limner.data.formats.columns import Columns
from limner.data.formats.folders import FolderPictures
from limner.data.formats.looking import recognise
from limner.data.rows import PictureSet, Row
from limner.data.sources import open_data, open_picture_set
from limner.errors import LimnerError
from limner.fingerprints import Fingerprints

Build = Callable[..., Config]


def opened(words: list[str]) -> PictureSet:
    return open_picture_set(load_config(None, words))


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_format_gives_the_rows_that_were_written(name: str, tmp_path: Path):
    example = EXAMPLES[name]
    pictures = opened(settings(name, tmp_path / "data"))
    assert pictures.refused == []
    assert [row.key.split("/")[-1] for row in pictures.rows] == [one.name for one in emoji()]
    for place, (row, one) in enumerate(zip(pictures.rows, emoji(), strict=True)):
        assert row.captions == one.captions
        assert np.array_equal(pictures.load(row, SIDE), one.pixels)
        aside = None if example.held_out is None else place in example.held_out
        assert row.held_out is aside
    assert f"{COUNT} pictures with {2 * COUNT} captions" in pictures.description


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_format_is_found_by_looking_and_can_be_named(name: str, tmp_path: Path):
    words = settings(name, tmp_path / "data")
    config = load_config(None, words)
    path = Path(config.data.dataset_path)
    assert recognise(path, Columns.of(config)) == EXAMPLES[name].kind
    named = opened([*words, f"data.format={EXAMPLES[name].kind}"])
    assert list(named.rows) == list(opened(words).rows)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_format_trains_and_goes_on_to_the_bit(name: str, tmp_path: Path, tiny_config: Build):
    words = [*settings(name, tmp_path / "data"), "training.max_steps=4", "training.save_steps=2"]
    words += ["training.heldout_steps=4", f"cache.folder='{tmp_path / 'cache'}'"]
    whole = run(elsewhere(tiny_config(*words), "whole"))
    parted = run(elsewhere(tiny_config(*words), "parted"), steps=2)
    run(elsewhere(tiny_config(*words), "parted"), resume="latest")
    assert differing(whole / "checkpoint-4", parted / "checkpoint-4") == []
    data = open_data(tiny_config(*words))
    if aside := EXAMPLES[name].held_out:
        assert {row.key for row in data.held_out.rows} == {data.set.rows[i].key for i in aside}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_format_travels_to_workers_and_knows_its_contents(name: str, tmp_path: Path):
    words = settings(name, tmp_path / "data")
    pictures = opened(words)
    there = pickle.loads(pickle.dumps(pictures))
    last = pictures.rows[COUNT - 1]
    assert np.array_equal(there.load(last, SIDE), emoji()[-1].pixels)
    known = Fingerprints(tmp_path / "cache" / "contents.npy")
    contents = pictures.contents(pictures.rows, known)
    assert contents.shape == (COUNT, 16)
    assert contents.dtype == np.uint8
    assert len({row.tobytes() for row in contents}) == COUNT
    assert contents.any(axis=1).all()
    again = opened(words).contents(pictures.rows[5:7], known)
    assert np.array_equal(again, contents[5:7])


@pytest.fixture
def table(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a table beside three pictures: a.png, b.png, c.png."""
    for level, name in enumerate("abc"):
        Image.new("RGB", (4, 4), (80 * level,) * 3).save(tmp_path / f"{name}.png")

    def build(text: str, name: str = "t.csv") -> Path:
        write(tmp_path / name, text)
        return tmp_path / name

    return build


def rows_of(path: Path, *words: str) -> dict[str, tuple[str, ...]]:
    return {r.key: r.captions for r in opened([f"data.dataset_path='{path}'", *words]).rows}
