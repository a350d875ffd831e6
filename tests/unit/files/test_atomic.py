"""What is written is there whole, or what was before; what a kill leaves goes, or comes back."""

import errno
import logging
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from half_written import dead, hidden, left_behind
from safetensors.torch import save_file

from limner.files import atomic
from limner.files.atomic import recover, recover_in, remove, replacing, write_text_whole


def put(path: Path, text: str, folder: bool) -> None:
    with replacing(path, folder=folder) as staging:
        (staging / "a" if folder else staging).write_text(text, "utf-8")


def said(path: Path) -> str:
    return (path / "a" if path.is_dir() else path).read_text("utf-8")


@pytest.mark.parametrize("folder", [False, True])
def test_it_is_replaced_and_nothing_else_is_left(folder: bool, tmp_path: Path) -> None:
    place = tmp_path / "new" / "place.x"
    for text in ("one", "two"):
        put(place, text, folder)
        assert said(place) == text
        assert [path.name for path in place.parent.iterdir()] == ["place.x"]


@pytest.mark.parametrize("folder", [False, True])
def test_what_was_there_stays_if_the_writing_fails(folder: bool, tmp_path: Path) -> None:
    place = tmp_path / "place"
    put(place, "one", folder)

    def fail() -> None:
        with replacing(place, folder=folder) as staging:
            (staging / "a" if folder else staging).write_text("tw", "utf-8")
            assert said(place) == "one"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert said(place) == "one"
    assert hidden(tmp_path) == []


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    put(place, "one", folder=True)
    rename = os.replace

    def refuse(source: Path, target: Path) -> None:
        if str(source).endswith(".writing"):
            raise PermissionError(13, "Permission denied", str(target))
        rename(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        put(place, "two", folder=True)
    assert said(place) == "one"
    assert hidden(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from limner.files import atomic
place, folder, moment = Path(sys.argv[1]), sys.argv[2] == "folder", int(sys.argv[3])
count = 0
def counted(function):
    def wrapped(*args, **kwargs):
        global count
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        return function(*args, **kwargs)
    return wrapped
for module, name in ((os, "replace"), (os, "fsync"), (Path, "mkdir"), (atomic.shutil, "rmtree")):
    setattr(module, name, counted(getattr(module, name)))
with atomic.replacing(place, folder=folder) as staging:
    (staging / "a" if folder else staging).write_text("two", "utf-8")
print("done")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows ends processes otherwise")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(kind: str, tmp_path: Path) -> None:
    moment, seen = 0, set()
    while True:
        place = tmp_path / str(moment) / "place"
        put(place, "one", kind == "folder")
        ended = subprocess.run(
            [sys.executable, "-c", KILLED, str(place), kind, str(moment)], capture_output=True
        )
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        recover(place)
        seen.add(said(place))  # it is there, whole
        assert hidden(place.parent) == []
        moment += 1
    assert seen == {"one", "two"}
    assert moment > 4


@pytest.mark.skipif(os.name == "nt", reason="Windows has no names to sync")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_all_is_on_the_disk_before_it_has_its_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, synced, renamed = tmp_path / "place", set(), []
    sync, rename = os.fsync, os.replace

    def noted(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def checked(written: Path, to: Path) -> None:
        if Path(to) == place:
            every = [Path(written), *Path(written).rglob("*")]
            assert {path.stat().st_ino for path in every} <= synced
            synced.clear()
            renamed.append(to)
        rename(written, to)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", checked)
    with atomic.replacing(place, folder=kind == "folder") as staging:
        (staging / "a" if kind == "folder" else staging).write_text("one", "utf-8")
    assert renamed
    assert tmp_path.stat().st_ino in synced  # and then its name


@pytest.fixture
def neighbour() -> Iterator[int]:
    """A process that is alive."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.communicate(b"\n")


def test_what_a_living_process_is_at_is_left_alone(neighbour: int, tmp_path: Path) -> None:
    place = tmp_path / "place"
    theirs = [left_behind(place, state, neighbour) for state in ("writing", "old")]
    put(place, "mine", folder=True)
    recover_in(tmp_path)
    assert all(path.is_dir() for path in theirs)


def test_what_this_process_is_at_is_left_alone_and_what_one_of_its_number_left_is_not(
    tmp_path: Path,
) -> None:
    earlier = left_behind(tmp_path / "place", "writing", os.getpid())
    with replacing(tmp_path / "other", folder=True) as mine:
        recover_in(tmp_path)
        assert mine.is_dir()
    assert not earlier.exists()


def test_a_number_that_another_process_has_by_now_protects_nothing(
    neighbour: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = left_behind(tmp_path / "place", "writing", neighbour)
    import psutil

    monkeypatch.setattr(psutil.Process, "create_time", lambda self: staged.stat().st_ctime + 60)
    recover_in(tmp_path)
    assert not staged.exists()


WRITING = """
import sys
from pathlib import Path
from limner.files.atomic import replacing
with replacing(Path(sys.argv[1]), folder=True):
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the start of a process is written")
@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_set_takes_nothing_from_a_living_process(
    hours: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    command = [sys.executable, "-c", WRITING, str(tmp_path / "place")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "writing\n"
        real = psutil.Process.create_time
        monkeypatch.setattr(psutil.Process, "create_time", lambda p: real(p) + 3600 * hours)
        recover_in(tmp_path)
        (staged,) = hidden(tmp_path)
        process.kill()
        process.wait()
        recover_in(tmp_path)
        assert hidden(tmp_path) == [], staged


def test_what_another_machine_of_this_name_is_at_is_left_alone_and_what_was_before_a_restart_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, replacing(tmp_path / "place", folder=True) as staging:
        patch.setattr(atomic, "boot", lambda: "another one")
        patch.setattr(atomic.os, "getpid", lambda: 2**22 + 1)
        patch.setattr(atomic, "started", lambda pid: 1.0)
        name = f".other.{atomic._host()}-{atomic._process()}-0.writing"
        patch.undo()
        theirs = staging.with_name(name)
        theirs.mkdir()
        recover_in(tmp_path)
        assert theirs.is_dir()
        import psutil

        patch.setattr(psutil, "boot_time", lambda: theirs.stat().st_ctime + 60)
        recover_in(tmp_path)
        assert not theirs.exists()


def test_another_machine_s_stays_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = left_behind(tmp_path / "place", "writing", dead(), host="00000000")
    recover_in(tmp_path)
    assert staged.is_dir()
    now = atomic.time.time()
    monkeypatch.setattr(atomic.time, "time", lambda: now + 25 * 3600)
    recover_in(tmp_path)
    assert not staged.exists()


def test_what_is_removed_or_comes_back_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    staged = left_behind(tmp_path / "place", "writing", dead())
    left_behind(tmp_path / "vae", "old", dead())
    with caplog.at_level(logging.WARNING, "limner"):
        recover(tmp_path / "place")
        recover(tmp_path / "vae")
    assert f"removed {staged}, which a killed run left half-written" in caplog.text
    assert f"restored {tmp_path / 'vae'}, which" in caplog.text
    assert said(tmp_path / "vae") == "theirs"
    assert hidden(tmp_path) == []


def test_somebody_else_s_hidden_folders_are_not_touched(tmp_path: Path) -> None:
    names = [".git", ".place.old", ".place.writing", ".place.12345678-1.old"]
    for name in names:
        (tmp_path / name).mkdir()
    put(tmp_path / "place", "mine", folder=True)
    recover_in(tmp_path)
    assert hidden(tmp_path) == sorted(names)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_mode_that_the_umask_gives(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "one.safetensors") as staging:
            save_file({"a": torch.zeros(2)}, staging)
            assert staging.stat().st_mode & 0o777 == 0o600  # what safetensors does by itself
        with replacing(tmp_path / "folder", folder=True) as staging:
            (staging / "inner").mkdir(0o700)
            save_file({"a": torch.zeros(2)}, staging / "inner" / "a.safetensors")
    finally:
        os.umask(before)
    for path in (tmp_path / "one.safetensors", tmp_path / "folder" / "inner" / "a.safetensors"):
        assert path.stat().st_mode & 0o777 == mode
    assert (tmp_path / "folder" / "inner").stat().st_mode & 0o777 == 0o777 & ~umask


def test_the_longest_names_have_room(tmp_path: Path) -> None:
    place = tmp_path / ("画" * 84)  # 252 bytes of the 255 that a name may have
    for text in ("one", "two"):
        put(place, text, folder=True)
        assert said(place) == text
    write_text_whole(tmp_path / f"{'a' * 250}.txt", "text")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_keeps_leading_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    put(tmp_path / "disk" / "vae", "one", folder=True)
    (tmp_path / "vae").symlink_to(tmp_path / "disk" / "vae")
    put(tmp_path / "vae", "two", folder=True)
    assert (tmp_path / "vae").is_symlink()
    assert said(tmp_path / "disk" / "vae") == "two"


def test_what_is_removed_bears_its_name_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "place", "one", folder=True)
    monkeypatch.setattr(atomic.shutil, "rmtree", lambda *a, **k: None)  # killed before it began
    remove(tmp_path / "place")
    monkeypatch.undo()
    assert not (tmp_path / "place").exists()
    recover_in(tmp_path)
    assert hidden(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="there folders are not synced, and modes not set")
def test_drives_that_sync_no_folders_and_change_no_modes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, fails = os.fsync, [errno.EINVAL]

    def files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(fails[0], os.strerror(fails[0]))
        fsync(descriptor)

    def not_the_owner(path: Path, mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    monkeypatch.setattr(os, "fsync", files_only)
    monkeypatch.setattr(Path, "chmod", not_the_owner)
    with replacing(tmp_path / "place", folder=True) as staging:
        (staging / "a").touch(0o600)
        (staging / "a").write_text("one", "utf-8")
    assert said(tmp_path / "place") == "one"
    fails[0] = errno.EIO  # a disk that fails is another matter
    with pytest.raises(OSError, match="Input/output error"):
        put(tmp_path / "place", "two", folder=True)
    assert said(tmp_path / "place") == "one"
