"""Data sets that the package `datasets` reads: pictures inside tables, and what may be wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from compared_runs import differing, elsewhere, run
from dataset_hub import dataset_hub, files_of
from emoji_formats import COUNT, SIDE, emoji, metadata_jsonl, saved, settings

from limner.apps import doctor
from limner.config import Config, load_config
from limner.data import verify
from limner.data.convert.convert import prepare
from limner.data.dataset import ImageError, Row
from limner.data.formats.arrow import DatasetImages
from limner.data.open import open_data, open_image_dataset
from limner.errors import LimnerError
from limner.files.fingerprints import Fingerprints

Build = Callable[..., Config]
TEXTS = datasets.Value("string")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def opened(path: Path, *words: str) -> DatasetImages:
    found = open_image_dataset(load_config(None, [f"data.dataset_path='{path}'", *words]))
    assert isinstance(found, DatasetImages)
    return found


def of(columns: dict[str, list[Any]], **features: Any) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def encoded(count: int, paths: Callable[[int], str | None]) -> list[dict[str, Any]]:
    return [{"bytes": emoji()[i].data, "path": paths(i)} for i in range(count)]


def test_a_folder_that_load_dataset_reads_is_read_and_its_files_stay_files(tmp_path: Path):
    metadata_jsonl(tmp_path / "set")
    words = ["data.format=datasets", "data.caption_column=[chinese, english]"]
    found = opened(tmp_path / "set", *words)
    for row, one in zip(found.rows, emoji(), strict=True):
        assert row.key == f"images/{one.name}"
        assert row.captions == one.captions[::-1]
        assert found.path(row) == tmp_path / "set" / row.key
        assert found.image(row).read_bytes() == one.data
        assert np.array_equal(found.load(row, SIDE), one.pixels)
    known = Fingerprints(tmp_path / "contents.npy")
    before = found.contents(found.rows, known)
    (tmp_path / "set/images" / emoji()[3].name).write_bytes(emoji()[4].data)
    after = opened(tmp_path / "set", *words).contents(found.rows, known)
    assert np.flatnonzero((before != after).any(axis=1)).tolist() == [3]


def test_pictures_stay_in_the_table_until_they_are_asked_for(tmp_path: Path):
    found = opened(saved(tmp_path / "set"))
    assert all(
        file["filename"].startswith(str(tmp_path / "set")) for file in found.table.cache_files
    )
    assert type(found.table.data).__name__ != "InMemoryTable"
    assert found.path(found.rows[0]) is None
    assert [found.image(row) for row in found.rows] == [one.data for one in emoji()]


def test_workers_and_resume_see_the_same_pictures(tmp_path: Path, tiny_config: Build):
    words = [*settings("save_to_disk", tmp_path / "set"), "training.num_workers=2"]
    words += ["training.max_steps=4", "training.save_steps=2"]
    whole = run(elsewhere(tiny_config(*words), "whole"))
    parted = run(elsewhere(tiny_config(*words), "parted", num_workers=0), steps=2)
    run(elsewhere(tiny_config(*words), "parted"), resume="latest")
    assert differing(whole / "checkpoint-4", parted / "checkpoint-4") == []


def test_keys_are_the_paths_or_else_the_rows_numbers(tmp_path: Path):
    words = {"text": [one.captions[0] for one in emoji()[:3]]}
    for paths, keys in (
        (lambda i: f"{i}.png", ["0.png", "1.png", "2.png"]),
        (
            lambda i: f"/home/x/snapshots/{'0a' * 20}/train/{i}.png",
            [f"train/{i}.png" for i in range(3)],
        ),
        (lambda i: "image.png", ["0", "1", "2"]),
        (lambda i: None, ["0", "1", "2"]),
    ):
        table = of({"image": encoded(3, paths)} | words, image=datasets.Image(), text=TEXTS)
        found = DatasetImages(table, "made up")
        assert [row.key for row in found.rows] == keys
        assert np.array_equal(found.load(found.rows[2], SIDE), emoji()[2].pixels)


def test_the_image_column_is_known_by_its_type_and_labels_by_their_names():
    table = of(
        {"img_path": ["x", "y"], "sample": encoded(2, lambda i: None), "label": [1, 0]},
        img_path=TEXTS,
        sample=datasets.Image(),
        label=datasets.ClassLabel(names=["red_apple", "001.pear"]),
    )
    from limner.data.formats.columns import Columns

    found = DatasetImages(table, "made up", Columns(captions=("label",)))
    assert [row.captions for row in found.rows] == [("pear",), ("red apple",)]
    assert "columns sample, label" in found.description
    with pytest.raises(LimnerError, match=r"no 'text'; found 'img_path', 'sample', 'label'\."):
        DatasetImages(table, "made up")
    with pytest.raises(LimnerError, match=r"'label' is ClassLabel.*not pictures.*img_path, sample"):
        DatasetImages(table, "made up", Columns("label", ("label",)))


def test_bad_rows_are_listed_and_no_others(tmp_path: Path):
    images: list[Any] = encoded(6, lambda i: None)
    images[1] = None
    images[2] = {"bytes": None, "path": "https://example.org/2.png"}
    texts = [["a"], ["b"], ["c"], [], ["d", "", "d", "e"], [None]]
    table = of({"image": images, "text": texts}, image=datasets.Image(), text=datasets.List(TEXTS))
    found = DatasetImages(table, "made up")
    assert [(row.key, row.captions) for row in found.rows] == [("0", ("a",)), ("4", ("d", "e"))]
    assert [(row.key, row.reason) for row in found.refused] == [
        ("1", "row 1: there is no picture"),
        ("2", "row 2: there is only a URL, https://example.org/2.png, instead of the picture; "
              "download the pictures"),
        ("3", "row 3: the list of captions is empty"),
        ("4", "row 4: the caption is empty"),
        ("4", "row 4: the same text appears twice"),
        ("5", "row 5: the caption is None, not text"),
    ]  # fmt: skip


def broken(folder: Path) -> Path:
    images = encoded(COUNT, lambda i: f"{i}.png")
    images[5]["bytes"] = b"no picture"
    texts = [one.captions[0] for one in emoji()]
    table = of({"image": images, "text": texts}, image=datasets.Image(), text=TEXTS)
    table.save_to_disk(str(folder))
    return folder


def test_pictures_in_tables_are_checked_before_the_first_step_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(verify, "REMEMBERED_FROM", 10)
    words = ["data.num_samples=null", f"data.dataset_path='{broken(tmp_path / 'set')}'"]
    words += [f"cache.folder='{tmp_path / 'cache'}'"]
    decoded = []
    load = DatasetImages.load
    monkeypatch.setattr(DatasetImages, "load", lambda *a: (decoded.append(a[1].key), load(*a))[1])
    for expected in (COUNT, 1):  # the second time only the bad one
        decoded.clear()
        data = open_data(load_config(None, words))
        assert [row.key for row in data.set.refused] == ["5.png"]
        assert "is text, not a picture" in data.set.refused[0].reason
        assert len(data.trained.rows) + len(data.held_out.rows) == COUNT - 1
        assert len(decoded) == expected
    with pytest.raises(ImageError, match=r"^5\.png: "):
        opened(tmp_path / "set").load(Row("5.png", ("x",)), 8)


def test_contents_are_hashed_once_for_each_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    known = Fingerprints(tmp_path / "cache/contents.npy")
    found = opened(saved(tmp_path / "set"))
    some = found.contents(found.rows[3:5], known)
    everything = found.contents(found.rows, known)
    assert np.array_equal(everything[3:5], some)
    with monkeypatch.context() as patched:
        patched.setattr(DatasetImages, "_image", lambda *_: pytest.fail("it was read again"))
        again = opened(tmp_path / "set")
        assert np.array_equal(again.contents(found.rows, known), everything)
    [kept] = (tmp_path / "cache").glob("contents-*.npy")
    kept.write_bytes(b"damaged")
    assert np.array_equal(found.contents(found.rows, known), everything)


def test_contents_are_hashed_where_they_cannot_be_kept(tmp_path: Path):
    (tmp_path / "cache").touch()  # a file, in which nothing can be
    found = opened(saved(tmp_path / "set"))
    known = Fingerprints(tmp_path / "cache/contents.npy")
    assert found.contents(found.rows, known).any(axis=1).all()


def test_a_table_that_was_changed_in_place_is_hashed_anew(tmp_path: Path):
    known = Fingerprints(tmp_path / "contents.npy")
    found = opened(saved(tmp_path / "set"))
    before = found.contents(found.rows, known)
    [file] = (tmp_path / "set").glob("*.arrow")
    other = bytes(reversed(emoji()[2].data))
    changed = file.read_bytes().replace(emoji()[2].data, other)
    file.unlink()  # the old one stays mapped
    file.write_bytes(changed)
    again = opened(tmp_path / "set")
    assert again.image(again.rows[2]) == other
    assert again.signature(again.rows[3]) != found.signature(found.rows[3])
    differs = (again.contents(again.rows, known) != before).any(axis=1)
    assert np.flatnonzero(differs).tolist() == [2]


def test_only_the_split_that_is_named_is_read(tmp_path: Path):
    parts = {}
    for number, split in enumerate(("train", "test")):
        some = encoded(12, lambda i, n=number: f"{i + 12 * n}.png")
        table = of({"image": some, "text": ["x"] * 12}, image=datasets.Image(), text=TEXTS)
        parts[split] = table.select(range(12 - number))
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "set"))
    assert len(opened(tmp_path / "set").rows) == 12
    found = opened(tmp_path / "set", "data.dataset_split=test")
    assert [row.key for row in found.rows] == [f"{i + 12}.png" for i in range(11)]
    with pytest.raises(
        LimnerError, match=r"dataset_split: .* no 'dev'; its splits are train, test"
    ):
        opened(tmp_path / "set", "data.dataset_split=dev")
    metadata_jsonl(tmp_path / "folder")
    with pytest.raises(LimnerError, match=r"split 'dev' .*Unknown split.*data\.dataset_split"):
        opened(tmp_path / "folder", "data.format=datasets", "data.dataset_split=dev")


def test_a_selection_keeps_its_rows(tmp_path: Path):
    table = datasets.load_from_disk(str(saved(tmp_path / "set"))).select([7, 3])
    found = DatasetImages(table, "made up")
    assert [row.key for row in found.rows] == [emoji()[i].name for i in (7, 3)]
    assert np.array_equal(found.load(found.rows[1], SIDE), emoji()[3].pixels)


# The Hub


def test_a_hub_id_is_loaded_with_its_configuration_and_split_and_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = []
    table = datasets.load_from_disk(str(saved(tmp_path / "set")))

    def load(*positional: Any, **named: Any) -> Any:
        asked.append((positional, named))
        return table

    monkeypatch.setattr(datasets, "load_dataset", load)
    words = ["data.dataset_name=someone/emoji", "data.dataset_split=train[:50]"]
    found = open_image_dataset(load_config(None, [*words, "data.dataset_config=small"]))
    assert asked == [(("someone/emoji", "small"), {"split": "train[:50]"})]
    assert found.name == "someone/emoji"
    assert len(found.rows) == COUNT


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (
            ConnectionError("no route"),
            r"could not be downloaded.*HF_ENDPOINT=https://hf-mirror\.com",
        ),
        (
            datasets.exceptions.DatasetNotFoundError("gone"),
            r"not on the Hub, or is private or gated",
        ),
        (
            ValueError("Config name is missing. Pick one"),
            r"Pick one.*data\.dataset_config to choose",
        ),
        (RuntimeError("Dataset scripts are no longer supported"), r"scripts are no longer"),
        (KeyError("odd"), r"could not be read \(KeyError: 'odd'\)"),
    ],
)
def test_what_goes_wrong_with_the_hub_says_what_to_do(
    error: Exception, wanted: str, monkeypatch: pytest.MonkeyPatch
):
    def load(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(LimnerError, match=r"data\.dataset_name: someone/emoji .*" + wanted):
        open_image_dataset(load_config(None, ["data.dataset_name=someone/emoji"]))


def test_without_the_package_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(LimnerError, match=r'run: pip install "limner\[data\]"'):
        open_image_dataset(load_config(None, ["data.dataset_name=someone/emoji"]))


def test_the_real_client_fetches_a_set_that_prepare_wrote(tmp_path: Path):
    metadata_jsonl(tmp_path / "source")
    columns = "data.caption_column=[english, chinese]"
    prepare(
        "auto", tmp_path / "source", tmp_path / "set", to="parquet", shard_size="10",
        overrides=[columns],
    )  # fmt: skip
    program = (
        "import json; from limner.config import load_config;"
        "from limner.data.open import open_image_dataset;"
        "found = open_image_dataset(load_config(None, ['data.dataset_name=someone/emoji']));"
        "load = lambda row: found.load(row, 16).tolist();"
        "print(json.dumps([[row.captions, load(row)] for row in found.rows]))"
    )
    with dataset_hub("someone/emoji", files_of(tmp_path / "set")) as address:
        # The address is looked at when the client is imported.
        there = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(
            [sys.executable, "-c", program], env=there, capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert rows == [[list(one.captions), one.pixels.tolist()] for one in emoji()]


def test_the_doctor_asks_the_hub_and_downloads_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("downloaded"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    [finding] = doctor.data(load_config(None, ["data.dataset_name=someone/emoji"]))
    assert finding.verdict == "fail"
    assert "someone/emoji is read from the Hub" in finding.seen
