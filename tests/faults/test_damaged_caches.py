"""A bit that flips on the disk, in what was computed once, is found when it is read: the rows are
indexed, fetched or computed again, and nothing that is damaged is trained."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pretrained import tiny_autoencoder
from stores import KEY, Maker, contents, filled, ids_of

from limner.config import Config, load_config
from limner.data.dataset import ImageError
from limner.data.open import open_image_dataset
from limner.data.precomputed.fill import fill
from limner.data.precomputed.store import Store
from limner.data.streaming.chunk_cache import Pieces
from limner.errors import LimnerError
from limner.files.fingerprints import load_array, save_array
from limner.training import precompute as precompute_module
from limner.training.precompute import precompute
from limner.training.trainer import Trainer

Build = Callable[..., Config]


def tar(path: Path, captions: list[str]) -> Path:
    from tar_files import png

    with tarfile.open(path, "w") as file:
        for number, caption in enumerate(captions):
            for name, data in ((f"{number}.png", png(number)), (f"{number}.txt", caption.encode())):
                about = tarfile.TarInfo(name)
                about.size = len(data)
                file.addfile(about, io.BytesIO(data))
    return path


def flip(path: Path, place: int) -> None:
    """The lowest bit of one byte, in place: who has the file mapped sees it."""
    with open(path, "r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[], Any]:
    path = tar(tmp_path / "s.tar", [f"a picture of number {n}" for n in range(20)])
    words = [f"data.dataset_path='{path}'", f"cache.folder='{tmp_path / 'cache'}'"]
    return lambda: open_image_dataset(load_config(None, words))


def index_of(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache" / "index").glob("*.index")
    return path


def test_a_letter_of_a_caption_that_flips_is_indexed_again(
    tmp_path: Path, opened: Callable[[], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    before = [row.captions for row in opened().rows]
    path = index_of(tmp_path)
    good = path.read_bytes()
    flip(path, good.index(b"number 7") + 7)
    assert [row.captions for row in opened().rows] == before
    assert "is damaged; it was moved to" in capsys.readouterr().out
    assert path.read_bytes() == good


@pytest.mark.parametrize("share", np.linspace(0, 0.999, 23).tolist())
def test_any_byte_of_an_index_that_flips_is_found(
    share: float, tmp_path: Path, opened: Callable[[], Any]
) -> None:
    first = opened()
    wanted = [(row.key, row.captions, first.image(row)) for row in first.rows]
    path = index_of(tmp_path)
    good = path.read_bytes()
    flip(path, int(share * len(good)))
    found = opened()
    assert [(row.key, row.captions, found.image(row)) for row in found.rows] == wanted
    assert path.read_bytes() == good


def test_a_caption_that_flips_while_a_run_reads_it_is_not_trained(
    tmp_path: Path, opened: Callable[[], Any]
) -> None:
    found, path = opened(), index_of(tmp_path)
    flip(path, path.read_bytes().index(b"number 7") + 7)
    good = [n for n in range(20) if n != 7]
    assert [found.rows[n].captions[0] for n in good] == [f"a picture of number {n}" for n in good]
    with pytest.raises(
        LimnerError, match=r"was damaged while it was in use.*Start the command again"
    ):
        found.rows[7]
    assert opened().rows[7].captions == ("a picture of number 7",)


def test_an_index_of_an_earlier_version_is_made_again(
    tmp_path: Path, opened: Callable[[], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    opened()
    path = index_of(tmp_path)
    good = path.read_bytes()
    path.write_bytes(good[16:])  # before there were a mark and a checksum
    assert len(opened().rows) == 20
    assert "was written by an earlier version; indexing again" in capsys.readouterr().out
    assert not list(path.parent.glob("*.damaged"))


@pytest.mark.parametrize("place", [0, 5, 9, 30, 150, 300, -1, -400])
def test_a_fetched_piece_that_flips_is_fetched_again(place: int, tmp_path: Path) -> None:
    images = [f"picture {n}".encode() * 20 for n in range(10)]
    pieces = Pieces(tmp_path, 2**20)
    assert pieces.image("a", 3, lambda: images) == images[3]
    good = pieces.path("a").read_bytes()
    flip(pieces.path("a"), place % len(good))
    again = Pieces(tmp_path, 2**20)
    assert [again.image("a", n, lambda: images) for n in range(10)] == images
    assert again.path("a").read_bytes() == good


@pytest.mark.parametrize("share", np.linspace(0, 0.999, 11).tolist())
def test_arrays_that_are_remembered_are_verified(share: float, tmp_path: Path) -> None:
    path, kept = tmp_path / "shapes.npy", np.arange(40, dtype="<i4").reshape(20, 2)
    save_array(path, kept)
    found = load_array(path)
    assert found is not None
    assert np.array_equal(found, kept)
    flip(path, int(share * path.stat().st_size))
    assert load_array(path) is None
    assert load_array(tmp_path / "none.npy") is None


# Stored latents


def shard_of(folder: Path) -> tuple[Path, dict[str, Any], int]:
    """(a shard, its header, where its tensors begin)."""
    path = sorted(folder.glob("shard-*.safetensors"))[0]
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return path, json.loads(raw[8 : 8 + length]), 8 + length


@pytest.mark.parametrize("where", ["ids", "starts", "sums"])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.99])
def test_a_shard_whose_places_are_damaged_is_computed_again(
    share: float, where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = filled(tmp_path).folder
    before = contents(folder)
    path, header, begin = shard_of(folder)
    first, last = header[where]["data_offsets"]
    flip(path, begin + first + int(share * (last - first)))
    store, maker = Store.open(tmp_path, "latents", KEY), Maker()
    assert "checksum mismatch" in caplog.messages[0]
    fill(store, ids_of(20), maker, 8, 3)
    assert len(maker.asked) in (4, 8)
    assert {n: d for n, d in contents(folder).items() if n in before} == before


@pytest.mark.parametrize("share", np.linspace(0, 0.999, 9).tolist())
def test_a_latent_that_is_damaged_is_refused_and_then_computed_again(
    share: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = filled(tmp_path)
    before, folder = contents(store.folder), store.folder
    path, header, begin = shard_of(folder)
    first, last = header["values"]["data_offsets"]
    flip(path, begin + first + int(share * (last - first)))

    again, bad = Store.open(tmp_path, "latents", KEY), list[int]()
    assert caplog.messages == []  # opening reads no values
    for number, place in enumerate(again.find(ids_of(20)).tolist()):
        try:
            found = float(again.read(place)[0, 0, 0])
        except ImageError as error:
            bad.append(number)
            said = str(error)
        else:
            assert found == number
    assert len(bad) == 1
    assert "stored values are damaged" in said
    assert path.with_suffix(".suspect").exists()

    next_start, maker = Store.open(tmp_path, "latents", KEY), Maker()
    assert "checksum mismatch in 1 of its rows" in caplog.messages[0]
    fill(next_start, ids_of(20), maker, 8, 3)
    assert bad[0] in maker.asked
    assert {n: d for n, d in contents(folder).items() if n in before} == before
    assert not path.with_suffix(".suspect").exists()
    places = next_start.find(ids_of(20)).tolist()
    assert [float(next_start.read(place)[0, 0, 0]) for place in places] == list(range(20))


def test_a_shard_that_was_suspected_and_is_whole_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = filled(tmp_path).folder
    before = contents(folder)
    path, _, _ = shard_of(folder)
    path.with_suffix(".suspect").touch()
    store = Store.open(tmp_path, "latents", KEY)
    assert caplog.messages == []
    assert len(store) == 20
    assert contents(folder) == before


def test_a_run_passes_a_damaged_latent_over_and_says_so(
    tmp_path: Path, tiny_config: Build, caplog: pytest.LogCaptureFixture
) -> None:
    vae = tiny_autoencoder(tmp_path / "vae")
    words = [f"vae.pretrained_model_name='{vae}'", "model.patch_size=2", "data.train_split=1"]
    words += [f"cache.folder='{tmp_path / 'cache'}'", "training.max_steps=12"]
    trainer = Trainer(tiny_config(*words))
    assert trainer.run.inputs.trained  # computed, and opened
    (folder,) = (tmp_path / "cache").glob("latents-*")
    path, header, begin = shard_of(folder)
    flip(path, begin + header["values"]["data_offsets"][0] + 3)
    trainer.train()
    lines = (trainer.folder / "refused.jsonl").read_text("utf-8").splitlines()
    [refused] = [json.loads(line) for line in lines]
    assert "stored values are damaged" in refused["reason"]
    assert refused["reason"].startswith(refused["key"])
    caplog.clear()
    precompute(tiny_config(*words))
    said = caplog.messages
    assert any("moved to" in line and "computed again" in line for line in said)
    assert any("1 pictures to encode" in line or "pictures encoded" in line for line in said)


def test_stores_are_of_the_way_in_which_pictures_are_decoded(
    tmp_path: Path,
    tiny_config: Build,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Latents of pictures whose colours were not converted are not used for those that are."""
    vae = tiny_autoencoder(tmp_path / "vae")
    words = [f"vae.pretrained_model_name='{vae}'", "model.patch_size=2"]
    config = tiny_config(*words, f"cache.folder='{tmp_path / 'cache'}'")
    monkeypatch.setattr(precompute_module, "DECODING", 1)
    precompute(config)
    monkeypatch.undo()
    precompute(config)
    assert any("decoding is 1 in the store and 2 in this run" in line for line in caplog.messages)
    assert len(list((tmp_path / "cache").glob("latents-*"))) == 2
