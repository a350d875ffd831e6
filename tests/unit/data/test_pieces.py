"""Pieces of shards on the disk: fetched once, bounded, mended; and a network that fails."""

import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from limner.data.streaming import remote_files
from limner.data.streaming.chunk_cache import Pieces
from limner.data.streaming.remote_files import Unreachable, patiently
from limner.errors import LimnerError


def images_of(name: str) -> list[bytes]:
    return [f"{name} {number}".encode() * 100 for number in range(10)]


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.piece"))


def test_pieces_take_no_more_than_they_may_and_the_oldest_go_first(tmp_path: Path) -> None:
    one = sum(map(len, images_of("piece-0")))
    pieces = Pieces(tmp_path, most_bytes=3 * one + 1000)
    for number in range(6):
        name = f"piece-{number}"
        got = pieces.image(name, 7, lambda name=name: images_of(name))  # type: ignore[misc]
        assert got == images_of(name)[7]
        used = time.time_ns() + number * 10**9  # clocks of some file systems are coarse
        os.utime(pieces.path(name), ns=(used, used))
        assert total(tmp_path) <= pieces.most_bytes
    assert sorted(p.stem for p in tmp_path.glob("*.piece")) == ["piece-3", "piece-4", "piece-5"]
    # What is needed soon stays, though it was not used for longest.
    pieces.get("piece-6", lambda: images_of("piece-6"), keep=["piece-3"])
    assert sorted(p.stem for p in tmp_path.glob("*.piece")) == ["piece-3", "piece-5", "piece-6"]


@pytest.mark.parametrize("keep", [0, 1, 40])
def test_a_damaged_piece_is_fetched_again(keep: int, tmp_path: Path) -> None:
    pieces = Pieces(tmp_path, 2**20)
    pieces.get("a", lambda: images_of("a"))
    whole = pieces.path("a").read_bytes()
    pieces.path("a").write_bytes(whole[:keep])
    assert pieces.image("a", 3, lambda: images_of("a")) == images_of("a")[3]
    assert pieces.path("a").read_bytes() == whole


def _take(folder: str, started: int) -> None:
    def fetch() -> Sequence[bytes]:
        with open(Path(folder) / "fetched.txt", "a", encoding="utf-8") as log:
            log.write("once\n")
        time.sleep(0.5)  # the others come meanwhile
        return images_of("a")

    pieces = Pieces(Path(folder), 2**20)
    assert pieces.image("a", started, fetch) == images_of("a")[started]


def test_several_processes_that_need_a_piece_fetch_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=_take, args=(str(tmp_path), n)) for n in range(3)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0, 0, 0]
    assert (tmp_path / "fetched.txt").read_text(encoding="utf-8") == "once\n"


def test_a_full_disk_is_said_and_leaves_no_half_piece(tmp_path: Path) -> None:
    pieces = Pieces(tmp_path, 2**20)
    pieces.path("a").mkdir()  # nothing can be put in its place
    with pytest.raises(LimnerError, match=r"cannot be written.*last checkpoint"):
        pieces.get("a", lambda: images_of("a"))
    assert list(tmp_path.glob("*.writing")) == []


class Answers:
    """A network that fails in these ways, one after the other, and then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.asked = list(errors), 0

    def __call__(self) -> str:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


class Refusal(Exception):
    status = 403


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr(remote_files.time, "sleep", seconds.append)
    return seconds


def test_a_network_that_fails_is_asked_again_and_then_the_run_ends(waited: list[float]) -> None:
    answers = Answers(OSError("reset"), TimeoutError("late"))
    assert patiently("https://x/a.tar", answers) == "answer"
    assert (answers.asked, waited) == (3, [1, 2])
    waited.clear()
    with pytest.raises(Unreachable, match=r"https://x/a\.tar could not be reached for 5 minutes"):
        patiently("https://x/a.tar", Answers(*[OSError("down")] * 100))
    assert sum(waited) == pytest.approx(308)


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), PermissionError("no"), Refusal("no")])
def test_what_waiting_does_not_mend_is_said_at_once(error: Exception, waited: list[float]) -> None:
    with pytest.raises((FileNotFoundError, LimnerError)) as said:
        patiently("https://x/a.tar", Answers(error))
    assert not isinstance(said.value, Unreachable)
    assert waited == []
