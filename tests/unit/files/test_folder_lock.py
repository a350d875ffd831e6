"""One process at a time writes into a folder; what a killed one left behind is taken over."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lock_holders import HOLD, another_process, left_behind

from limner.errors import LimnerError
from limner.files import folder_lock
from limner.files.folder_lock import TRAINING, FolderLock
from limner.files.process_identity import started


@pytest.mark.parametrize("name", [TRAINING, None])
def test_a_second_process_is_told_who_writes_there_and_what_to_do(
    name: str | None, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    lock = FolderLock(folder, "name another training.output_dir", name)
    with another_process(folder, name) as process:
        with pytest.raises(LimnerError) as error:
            lock.acquire()
        said = str(error.value)
        assert f"{folder} is in use: process {process.pid} on {socket.gethostname()} " in said
        assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\.", said)
        assert said.endswith("Wait until it ends, or name another training.output_dir")
        assert process.stdin
        process.stdin.close()
        process.wait(10)
        with lock:
            assert lock.path.is_file()
    assert list(tmp_path.rglob("*")) == []


def test_one_folder_by_several_names_is_one(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    names = (tmp_path / "link", Path(), tmp_path / "run" / ".." / "run")
    assert {FolderLock(name, "wait", TRAINING).path for name in names} == {
        tmp_path / "run" / TRAINING
    }


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    with FolderLock(tmp_path / ("x" * 255), "wait") as lock:
        assert lock.path.is_file()


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with another_process(folder, TRAINING) as process:
        process.kill()
        # Not waited for: it is a zombie, whose number is still taken.
        deadline = time.monotonic() + 10
        lock = FolderLock(folder, "wait", TRAINING)
        while time.monotonic() < deadline:
            try:
                lock.acquire()
                break
            except LimnerError:
                time.sleep(0.02)
        assert lock.held
        assert json.loads(lock.path.read_text(encoding="utf-8"))["pid"] == os.getpid()
        lock.release()
    assert not folder.joinpath(TRAINING).exists()


def test_a_number_that_another_process_has_by_now_is_not_the_holder(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path, "wait", TRAINING)
    parent = os.getppid()
    left_behind(lock.path, pid=parent, began=12345.0)
    with lock:
        pass
    # As after a restart of a container, in which every process has the number that it had.
    left_behind(lock.path)
    with lock:
        pass
    left_behind(lock.path, pid=parent, began=started(parent))
    with pytest.raises(LimnerError, match=f"process {parent} on"):
        lock.acquire()


@pytest.mark.parametrize("where", [{"host": "gpu-7"}, {"space": "pid:[17]"}])
def test_a_holder_on_another_machine_counts_while_it_shows_signs_of_life(
    where: dict[str, str], tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.2)
    lock = FolderLock(tmp_path, "name another folder", TRAINING)
    holder = left_behind(lock.path, pid=2**22 + 1, **where)
    monkeypatch.setattr(folder_lock.time, "sleep", lambda seconds: os.utime(lock.path))
    with pytest.raises(LimnerError) as error:
        lock.acquire()
    assert f"process {holder.pid} on {holder.host} has" in str(error.value)
    assert str(error.value).endswith(
        f"or name another folder. If nothing runs there any more, delete {lock.path}"
    )
    assert "checking for 0 seconds whether it still is" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.2)
    with lock:
        assert json.loads(lock.path.read_text(encoding="utf-8"))["pid"] == os.getpid()


def test_a_holder_touches_its_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(folder_lock, "BEAT", 0.01)
    with FolderLock(tmp_path, "wait", TRAINING) as lock:
        os.utime(lock.path, (1, 1))
        deadline = time.monotonic() + 5
        while lock.path.stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lock.path.stat().st_mtime > 2


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"pid": "x"}', '{"host":1,"pid":1,"space":"","began":1,"since":1e99}']
)
def test_a_file_that_says_nothing_holds_nothing(text: str, tmp_path: Path) -> None:
    lock = FolderLock(tmp_path, "wait", TRAINING)
    lock.path.write_text(text, encoding="utf-8")
    with lock:
        assert json.loads(lock.path.read_text(encoding="utf-8"))["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_of_several_that_take_over_one_file_at_once_one_is_in_it(tmp_path: Path) -> None:
    left_behind(tmp_path / TRAINING, pid=2**22 + 1)
    command = [sys.executable, "-c", HOLD, str(tmp_path), TRAINING]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    several = [subprocess.Popen(command, text=True, **pipes) for _ in range(3)]  # type: ignore[call-overload]
    try:
        first = [process.stdout.readline() for process in several]
        assert sorted(first) == ["", "", "held\n"]
    finally:
        for process in several:
            process.kill()
            process.communicate()


def test_what_was_there_before_stays_and_what_was_made_goes(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "a" / "b", "wait", TRAINING):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with FolderLock(tmp_path / "a" / "b", "wait", TRAINING):
        (tmp_path / "a" / "log.jsonl").touch()
    assert [p.name for p in tmp_path.rglob("*")] == ["a", "log.jsonl"]


def test_within_one_process_the_last_one_out_releases(tmp_path: Path) -> None:
    outer, inner = (FolderLock(tmp_path, "wait", TRAINING) for _ in range(2))
    with outer:
        with inner:
            pass
        assert outer.path.exists()
        inner.release()  # a second time: nothing
        assert outer.path.exists()
    assert not outer.path.exists()


def test_a_lock_that_was_lost_to_another_is_not_removed(tmp_path: Path) -> None:
    with FolderLock(tmp_path, "wait", TRAINING) as lock:
        left_behind(lock.path, pid=1)
    assert json.loads(lock.path.read_text(encoding="utf-8"))["pid"] == 1


def test_a_full_disk_leaves_no_lock(tmp_path: Path, monkeypatch) -> None:
    def full(file: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        FolderLock(tmp_path, "wait", TRAINING).acquire()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the start of a process is written")
def test_a_living_holder_keeps_its_folder_when_the_clock_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    with another_process(tmp_path / "run", TRAINING) as process:
        real = psutil.Process.create_time
        monkeypatch.setattr(psutil.Process, "create_time", lambda p: real(p) + 3600)
        with pytest.raises(LimnerError, match=f"process {process.pid} on"):
            FolderLock(tmp_path / "run", "wait", TRAINING).acquire()


def test_machines_of_one_name_are_told_apart_by_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.3)
    lock = FolderLock(tmp_path, "wait", TRAINING)
    left_behind(lock.path, pid=2**22 + 1, space=folder_lock._space() + "of another boot")
    monkeypatch.setattr(folder_lock.time, "sleep", lambda seconds: os.utime(lock.path))
    with pytest.raises(LimnerError, match="is in use"):
        lock.acquire()
    # Before a restart of this machine: at once.
    monkeypatch.setattr(folder_lock, "PATIENCE", 3600)
    monkeypatch.setattr(folder_lock.time, "sleep", lambda seconds: None)
    os.utime(lock.path, (time.time() - 7200,) * 2)
    with lock:
        pass


def test_a_process_of_another_user_that_is_not_shown_counts_while_it_shows_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.3)
    monkeypatch.setattr(folder_lock, "is_hidden", lambda pid: True)
    lock = FolderLock(tmp_path, "wait", TRAINING)
    left_behind(lock.path, pid=2**22 + 1)
    monkeypatch.setattr(folder_lock.time, "sleep", lambda seconds: os.utime(lock.path))
    with pytest.raises(LimnerError, match="is in use"):
        lock.acquire()
    assert "which hides other users' processes" in capsys.readouterr().err


def test_a_copy_of_a_folder_in_use_is_held_by_nobody(tmp_path: Path) -> None:
    run, copy = tmp_path / "run", tmp_path / "copy"
    with another_process(run, TRAINING):
        shutil.copytree(run, copy)
        with FolderLock(copy, "wait", TRAINING):
            pass
        run.rename(tmp_path / "moved")
        with pytest.raises(LimnerError, match="is in use"):
            FolderLock(tmp_path / "moved", "wait", TRAINING).acquire()


def test_who_lost_the_folder_while_asleep_is_told_and_who_did_not_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FolderLock(tmp_path, "name another folder", TRAINING) as lock:
        awake = time.time()
        monkeypatch.setattr(folder_lock.time, "time", lambda: awake + 3600)
        lock.check()
        lock.path.unlink()  # somebody tidied up
        monkeypatch.setattr(folder_lock.time, "time", lambda: awake + 7200)
        lock.check()
        assert lock.path.is_file()
        other = left_behind(lock.path, pid=2**22 + 1, host="atlas")
        monkeypatch.setattr(folder_lock.time, "time", lambda: awake + 10800)
        for _ in range(2):
            with pytest.raises(LimnerError, match=f"taken over by process {other.pid} on atlas"):
                lock.check()
    assert lock.path.is_file()
