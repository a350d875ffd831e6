"""What a killed process leaves half-written is named and removed by the next of its kind, and what
a living one is at is not: for everything that is written in that way."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from half_written import dead, hidden, left_behind

from limner.apps.captioning.caption import images_to_caption
from limner.checkpoint.manifest import finish_interrupted, written_whole
from limner.data.precomputed.store import Store
from limner.data.streaming.chunk_cache import Pieces
from limner.data.streaming.remote_files import Place
from limner.data.streaming.shard_index import open_index
from limner.files.atomic import write_text_whole
from limner.files.fingerprints import save_array
from limner.reports.run_report import write_report


def a_run(folder: Path) -> None:
    finish_interrupted(folder)


def previews(folder: Path) -> None:
    finish_interrupted(folder.parent)


def a_report(folder: Path) -> None:
    (folder / "config.yaml").write_text("training: {}\n", "utf-8")
    write_report(folder)


def an_export(folder: Path) -> None:
    with written_whole(folder / "model", sealed=False) as staging:
        (staging / "a").write_text("a", "utf-8")


def a_store(folder: Path) -> None:
    Store.open(folder.parent, "latents", {"made_of": "numbers"})


def pieces(folder: Path) -> None:
    Pieces(folder, 2**20)


def an_index(folder: Path) -> None:
    open_index(Place("/x.tar", 1, "1"), "x.tar", "tar", folder, lambda *_: None)


def measured(folder: Path) -> None:
    save_array(folder / "shapes.npy", np.zeros(3))


def captions(folder: Path) -> None:
    (folder / "1.jpg").touch()
    images_to_caption(folder)


def settings(folder: Path) -> None:
    write_text_whole(folder / "config.yaml", "a: 1")


WRITERS: dict[Callable[[Path], None], tuple[str, str]] = {
    a_run: ("run", "checkpoint-6"),
    previews: ("run/previews", "step-000006.png"),
    a_report: ("run", "report.html"),
    an_export: ("exports", "model"),
    a_store: ("", "shard-1234.safetensors"),
    pieces: ("cache/pieces", "1234.piece"),
    an_index: ("cache/index", ""),
    measured: ("cache", "shapes.npy"),
    captions: ("photos", "1.txt"),
    settings: ("run", "config.yaml"),
}
"""What writes -> (its folder, what it was writing there when it was killed)."""


@pytest.fixture
def alive() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.communicate(b"\n")


@pytest.mark.parametrize("write", WRITERS)
def test_the_next_removes_it_and_says_so(
    write: Callable[[Path], None], alive: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where, name = WRITERS[write]
    folder = tmp_path / where
    if write is a_store:
        folder = Store.open(tmp_path, "latents", {"made_of": "numbers"}).folder
    folder.mkdir(parents=True, exist_ok=True)
    if write is an_index:  # whose name is a hash
        write(folder)
        (name,) = [path.name for path in folder.glob("*.index")]
        (folder / name).unlink()
    staged = left_behind(folder / name, "writing", dead())
    theirs = left_behind(folder / name, "writing", alive)
    write(folder)
    assert hidden(folder) == [theirs.name]
    assert f"removed {staged}, which a killed run left half-written" in caplog.text
