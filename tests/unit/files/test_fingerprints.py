"""Contents are known by hash, and read again only when a file's size or time has changed."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limner.files import fingerprints
from limner.files.fingerprints import Fingerprints, digest

LONG_AGO = 1_700_000_000


def files(folder: Path, *contents: bytes) -> list[Path]:
    paths = []
    for number, content in enumerate(contents):
        path = folder / f"{number}.bin"
        path.write_bytes(content)
        os.utime(path, (LONG_AGO, LONG_AGO))
        paths.append(path)
    return paths


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read."""
    names: list[str] = []
    content = fingerprints._content
    monkeypatch.setattr(
        fingerprints, "_content", lambda file: names.append(file.name) or content(file)
    )
    return names


def test_equal_contents_are_equal_and_others_are_not(tmp_path: Path) -> None:
    known = Fingerprints(tmp_path / "cache" / "contents.npy")
    found = known.of_files(files(tmp_path, b"a", b"b", b"a", b""))
    assert found.shape == (4, 16)
    assert (found[0] == found[2]).all()
    assert len({row.tobytes() for row in found}) == 3
    assert found.any(axis=1).all()


def test_a_file_is_read_once_and_again_when_it_changes(tmp_path: Path, read: list[str]) -> None:
    paths, cache = files(tmp_path, b"a", b"b", b"c"), tmp_path / "cache" / "contents.npy"
    first = Fingerprints(cache)
    before = first.of_files(paths)
    first.save()
    assert sorted(read) == ["0.bin", "1.bin", "2.bin"]
    read.clear()
    assert (Fingerprints(cache).of_files(paths) == before).all()
    assert read == []
    paths[1].write_bytes(b"B")  # as long as before, at another time
    os.utime(paths[1], (LONG_AGO + 10, LONG_AGO + 10))
    again = Fingerprints(cache)
    after = again.of_files(paths)
    assert read == ["1.bin"]
    assert (after == before).all(axis=1).tolist() == [True, False, True]
    again.save()
    assert (Fingerprints(cache).of_files(paths) == after).all()
    assert read == ["1.bin"]


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path, read: list[str]) -> None:
    (path,) = files(tmp_path, b"a")
    os.utime(path)  # now: it may change again within the same tick of the clock
    known = Fingerprints(tmp_path / "contents.npy")
    known.of_files([path])
    known.save()
    Fingerprints(tmp_path / "contents.npy").of_files([path])
    assert read == ["0.bin", "0.bin"]


def test_what_cannot_be_read_is_zeros(tmp_path: Path) -> None:
    known = Fingerprints(tmp_path / "contents.npy")
    found = known.of_files([tmp_path / "missing", *files(tmp_path, b"a")])
    assert found.any(axis=1).tolist() == [False, True]


def test_a_disk_that_fails_for_a_moment_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, asked = files(tmp_path, b"a", b"b"), list[str]()
    expected = Fingerprints(tmp_path / "contents.npy").of_files(paths)

    def flaky(path: Path, *args: Any) -> Any:
        asked.append(path.name)
        if asked.count(path.name) < 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return open(path, *args)

    monkeypatch.setattr(fingerprints, "open", flaky, raising=False)
    monkeypatch.setattr(fingerprints, "RETRY_AFTER", 0.001)
    assert (Fingerprints(tmp_path / "contents.npy").of_files(paths) == expected).all()
    assert sorted(asked) == ["0.bin"] * 3 + ["1.bin"] * 3


def test_what_was_read_before_a_kill_is_not_read_again(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "AT_ONCE", 2)
    monkeypatch.setattr(fingerprints, "SAVE_EVERY", 0)
    cache = tmp_path / "contents.npy"
    paths = files(tmp_path, b"a", b"b", b"c", b"d", b"e")
    Fingerprints(cache).of_files(paths)  # and never saved by whoever asked
    read.clear()
    Fingerprints(cache).of_files(paths)
    assert read == []
    Fingerprints(tmp_path / "cache" / "contents.npy").of_files(paths)
    assert not (tmp_path / "cache").exists()


def test_two_processes_keep_what_both_have_read(tmp_path: Path, read: list[str]) -> None:
    paths, cache = files(tmp_path, b"a", b"b"), tmp_path / "contents.npy"
    one, other = Fingerprints(cache), Fingerprints(cache)
    one.of_files(paths[:1])
    other.of_files(paths[1:])
    one.save()
    other.save()
    read.clear()
    Fingerprints(cache).of_files(paths)
    assert read == []


def test_a_place_that_cannot_be_written_remembers_nothing(tmp_path: Path, read: list[str]) -> None:
    (tmp_path / "cache").touch()  # a file, in which nothing can be; or somebody else's folder
    known = Fingerprints(tmp_path / "cache" / "contents.npy")
    paths = files(tmp_path, b"a")
    before = known.of_files(paths)
    known.save()
    assert (known.of_files(paths) == before).all()
    assert read == ["0.bin", "0.bin"]


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"\x93NUMPY\x01\x00v\x00{'descr': '|O', }"])
def test_a_damaged_file_of_hashes_knows_nothing(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "contents.npy").write_bytes(damage)
    known = Fingerprints(tmp_path / "contents.npy")
    assert known.of_files(files(tmp_path, b"a")).any()
    known.save()
    assert len(np.load(tmp_path / "contents.npy", allow_pickle=False)) == 1


def test_parts_are_told_apart() -> None:
    assert digest("ab", "c") != digest("a", "bc") != digest("abc")
    assert digest("a") == digest(b"a")
    assert len(digest()) == 16
