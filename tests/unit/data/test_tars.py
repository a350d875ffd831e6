"""Tars as data: what the index says is what tarfile says, and a resumed run is the same run."""

import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from tar_files import keys_seen, pairs, png, tar_of

from limner.checkpoint.folder import load_tensors
from limner.config import Config
from limner.data.formats import webdataset
from limner.data.open import open_data, open_image_dataset
from limner.data.streaming import shard_index as indexes
from limner.data.streaming.window_shuffle import WindowedShuffle
from limner.errors import LimnerError
from limner.training.trainer import Trainer


@pytest.fixture
def opened(tmp_path: Path, tiny_config: Callable[..., Config]) -> Callable[..., tuple[Config, Any]]:
    def build(path: str, *overrides: str) -> tuple[Config, Any]:
        config = tiny_config(
            "data.dataset_name=null",
            "data.num_samples=null",
            f"data.dataset_path='{path}'",
            f"cache.folder='{tmp_path / 'cache'}'",
            *overrides,
        )
        return config, open_image_dataset(config)

    return build


ODD = [
    ("a" * 150 + "/" + "b" * 120 + ".png", png(1)),
    ("a" * 150 + "/" + "b" * 120 + ".txt", b"long names"),
    ("./dots/one.orig.png", png(2)),
    ("./dots/one.caption.txt", "ünïcode 红苹果".encode()),
    ("ünï/苹果.png", png(3)),
    ("ünï/苹果.json", json.dumps({"caption": ["first", "second"]}).encode()),
    ("._hidden.png", b"nothing"),
    ("._hidden.txt", b"nothing"),
    ("apart.png", png(4)),
    ("between.png", png(5)),
    ("between.txt", b"between"),
    ("apart.txt", b"put together"),
    ("README", b"of no use"),
]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_an_odd_tar_is_read_as_tarfile_reads_it(
    kind: int, tmp_path: Path, opened: Callable[..., Any]
) -> None:
    (tmp_path / "odd.tar").write_bytes(tar_of(ODD, kind))
    _, found = opened(str(tmp_path / "odd.tar"))
    assert not found.refused
    captions = {row.key.removeprefix("odd.tar/"): row.captions for row in found.rows}
    assert captions == {
        "a" * 150 + "/" + "b" * 120: ("long names",),
        "dots/one": ("ünïcode 红苹果",),
        "ünï/苹果": ("first", "second"),
        "apart": ("put together",),
        "between": ("between",),
    }
    with tarfile.open(tmp_path / "odd.tar") as tar:
        for row in found.rows:
            stem = row.key.removeprefix("odd.tar/")
            (name,) = (
                n for n in tar.getnames() if n.removeprefix("./").startswith(stem + ".")
                and n.endswith("png")
            )  # fmt: skip
            assert found.image(row) == tar.extractfile(name).read()  # type: ignore[union-attr]


def test_a_tar_that_is_cut_off_gives_what_is_whole(
    tmp_path: Path, opened: Callable[..., Any]
) -> None:
    whole = tar_of(pairs(0, 40))
    (tmp_path / "cut.tar").write_bytes(whole[: 20 * 2048 + 600])
    _, found = opened(str(tmp_path / "cut.tar"))
    assert [row.key for row in found.rows] == [f"cut.tar/{n:05d}" for n in range(20)]
    assert any("cut off" in row.reason for row in found.refused)


@pytest.mark.parametrize("num_samples", ["null", "24"])
def test_pictures_that_prove_bad_in_a_run_end_it_at_the_limit(
    num_samples: str, tmp_path: Path, opened: Callable[..., Any]
) -> None:
    entries = pairs(0, 40)
    page = b"<html>404 not found</html>"
    mixed = [(n, page if n.endswith(".png") and n > "00015" else d) for n, d in entries]
    (tmp_path / "a.tar").write_bytes(tar_of(mixed))
    words = [f"data.num_samples={num_samples}", "training.max_steps=24"]
    config, _ = opened(f"{tmp_path}/a.tar", *words)
    with pytest.raises(LimnerError, match=r"data\.refused_limit 0\.5 allows") as error:
        Trainer(config).train()
    assert f"{'21 of 40' if num_samples == 'null' else '13 of 24'} rows" in str(error.value)
    words.append("data.refused_limit=0.7")
    config, _ = opened(f"{tmp_path}/a.tar", *words, f"training.output_dir='{tmp_path / 'more'}'")
    trainer = Trainer(config)
    trainer.train()
    assert trainer.state.step == 24


def test_what_lacks_a_half_is_refused_and_a_missing_shard_is_named(
    tmp_path: Path, opened: Callable[..., Any]
) -> None:
    entries = [
        *pairs(0, 12),
        ("x.png", png(1)),
        ("y.txt", b"y"),
        ("z.png", png(1)),
        ("z.txt", b" "),
    ]
    (tmp_path / "s-000.tar").write_bytes(tar_of(entries))
    _, found = opened(str(tmp_path / "s-000.tar"))
    assert len(found.rows) == 12
    assert {row.key for row in found.refused} == {f"s-000.tar/{k}" for k in "xyz"}
    with pytest.raises(LimnerError, match=r"1 of 2 files were not found.*s-001\.tar"):
        opened(str(tmp_path / "s-{000..001}.tar"))


def test_a_changed_shard_is_indexed_anew_and_a_damaged_index_is_made_again(
    tmp_path: Path, opened: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(tar_of(pairs(0, 12)))
    assert len(opened(str(path))[1].rows) == 12
    path.write_bytes(tar_of(pairs(0, 15)))
    assert len(opened(str(path))[1].rows) == 15
    assert "indexed again" in capsys.readouterr().out
    (index,) = (tmp_path / "cache" / "index").glob("*.index")
    index.write_bytes(index.read_bytes()[:-9])
    assert len(opened(str(path))[1].rows) == 15
    assert "damaged" in capsys.readouterr().out
    assert list(index.parent.glob("*.damaged"))


# Order


def test_the_windowed_order_shows_every_row_once_a_pass_and_is_a_function_of_the_count() -> None:
    sizes = np.random.default_rng(0).integers(0, 30, 40)
    firsts = np.concatenate([[0], np.cumsum(sizes)])
    total = int(firsts[-1])
    order = WindowedShuffle(firsts, 60, seed=3)
    seen = [order.position(count) for count in range(2 * total)]
    assert sorted(seen[:total]) == sorted(seen[total:]) == list(range(total))
    assert seen[:total] != seen[total:]
    again = pickle.loads(pickle.dumps(order))
    some = np.random.default_rng(1).permutation(2 * total)[:200].tolist()
    assert [again.position(count) for count in some] == [seen[count] for count in some]
    piece = np.searchsorted(firsts, seen[:total], side="right") - 1
    for p in set(piece.tolist()):  # a piece is needed in one window only
        places = np.flatnonzero(piece == p)
        assert places[-1] - places[0] < 60 + 2 * 30


# Training


def shards_far_away(name: str) -> str:
    files = fsspec.filesystem("memory")
    for shard in range(3):
        files.pipe_file(f"/{name}/s-{shard:03d}.tar", tar_of(pairs(40 * shard, 40)))
    return f"memory://{name}/s-{{000..002}}.tar"


@pytest.mark.parametrize("place", ["here", "far away"])
def test_resuming_in_the_middle_repeats_and_skips_no_picture(
    place: str, tmp_path: Path, opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexes, "PIECE_SAMPLES", 8)
    if place == "here":
        (tmp_path / "s.tar").write_bytes(tar_of(pairs(0, 120)))
        path = str(tmp_path / "s.tar")
    else:
        path = shards_far_away("resumed")
    config, _ = opened(path, "data.memory_mb=0", "data.shuffle_window=24", "data.train_split=1")
    data = open_data(config)
    whole = keys_seen(config, data, 0, 48, 0)
    assert sorted(whole[:120]) == sorted(whole[120:]) == list(range(120))
    resumed = keys_seen(config, open_data(config), 65, 11, workers=2)
    assert resumed == whole[65:120]


def test_a_run_from_shards_far_away_resumes_to_the_bit(
    tmp_path: Path, opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexes, "PIECE_SAMPLES", 8)
    path = shards_far_away("trained")
    config, _ = opened(path, "data.shuffle_window=24", "training.num_workers=2")

    def elsewhere(name: str, **training: Any) -> Config:
        settings = {"output_dir": str(tmp_path / name), **training}
        return config.model_copy(update={"training": config.training.model_copy(update=settings)})

    Trainer(elsewhere("whole")).train()
    half = elsewhere("half")
    first = Trainer(half)
    first.train()
    again = Trainer(elsewhere("half"), resume=tmp_path / "half" / "checkpoint-3")
    assert again.state.step == 3
    again.train()
    weights = [load_tensors(tmp_path / n / "checkpoint-6" / "model.pt") for n in ("whole", "half")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_two_processes_see_what_one_would(tmp_path: Path, opened: Callable[..., Any]) -> None:
    path = shards_far_away("shared")
    config, _ = opened(path, "data.memory_mb=0", "data.shuffle_window=24", "data.train_split=1")
    data = open_data(config)
    whole = keys_seen(config, data, 0, 24, 0)
    halves = [
        keys_seen(config, open_data(config), 0, 12, 0, processes=2, rank=rank) for rank in (0, 1)
    ]
    turns = [[half[i : i + 5] for i in range(0, 60, 5)] for half in halves]
    assert [n for both in zip(*turns, strict=True) for one in both for n in one] == whole


def test_an_index_that_a_kill_cut_short_goes_on_where_it_was(
    tmp_path: Path, opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for shard in range(3):
        (tmp_path / f"{shard}.tar").write_bytes(tar_of(pairs(40 * shard, 40)))
    read: list[str] = []
    build = webdataset.Tars.build

    def counted(self: webdataset.Tars, place: Any, building: Any) -> None:
        read.append(place.name)
        if read == ["0.tar", "1.tar"]:
            build(self, place, building)
            raise KeyboardInterrupt  # before it is put in its place
        build(self, place, building)

    monkeypatch.setattr(webdataset.Tars, "build", counted)
    with pytest.raises(KeyboardInterrupt):
        opened(str(tmp_path / "*.tar"))
    _, found = opened(str(tmp_path / "*.tar"))
    assert [read.count(f"{shard}.tar") for shard in range(3)] == [1, 2, 1]
    assert [row.captions[0] for row in found.rows] == [f"colour {n}" for n in range(120)]
