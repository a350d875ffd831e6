"""A bit that flips on the disk, in what was computed once, is found when it is read: the rows are
indexed, fetched or computed again, and nothing that is damaged is trained."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limner.config import Config, load_config
from limner.data.sources import open_picture_set
from limner.data.streams.pieces import Pieces
from limner.errors import LimnerError
from limner.fingerprints import load_array, save_array

Build = Callable[..., Config]


def tar(path: Path, captions: list[str]) -> Path:
    from test_tars import png

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
    return lambda: open_picture_set(load_config(None, words))


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
    wanted = [(row.key, row.captions, first.picture(row)) for row in first.rows]
    path = index_of(tmp_path)
    good = path.read_bytes()
    flip(path, int(share * len(good)))
    found = opened()
    assert [(row.key, row.captions, found.picture(row)) for row in found.rows] == wanted
    assert path.read_bytes() == good


def test_a_caption_that_flips_while_a_run_reads_it_is_not_trained(
    tmp_path: Path, opened: Callable[[], Any]
) -> None:
    found, path = opened(), index_of(tmp_path)
    flip(path, path.read_bytes().index(b"number 7") + 7)
    good = [n for n in range(20) if n != 7]
    assert [found.rows[n].captions[0] for n in good] == [f"a picture of number {n}" for n in good]
    with pytest.raises(LimnerError, match=r"was damaged while it was in use.*indexed anew"):
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
    assert "is of an earlier version: it is made anew" in capsys.readouterr().out
    assert not list(path.parent.glob("*.damaged"))


@pytest.mark.parametrize("place", [0, 5, 9, 30, 150, 300, -1, -400])
def test_a_fetched_piece_that_flips_is_fetched_again(place: int, tmp_path: Path) -> None:
    pictures = [f"picture {n}".encode() * 20 for n in range(10)]
    pieces = Pieces(tmp_path, 2**20)
    assert pieces.picture("a", 3, lambda: pictures) == pictures[3]
    good = pieces.path("a").read_bytes()
    flip(pieces.path("a"), place % len(good))
    again = Pieces(tmp_path, 2**20)
    assert [again.picture("a", n, lambda: pictures) for n in range(10)] == pictures
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
