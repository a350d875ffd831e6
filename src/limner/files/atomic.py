"""Atomic writes: a file or folder is replaced as a whole, or left unchanged (`replacing`).

Data is first written to a hidden folder beside its target, whose name says which process owns it:

    .vae.1f3a9c02-4711-5d0e26bb7a90c3f1-0.writing/  being written by process 4711 of this machine
    .vae.1f3a9c02-4711-5d0e26bb7a90c3f1-1.old/      the old folder, between the two renames
    .vae.1f3a9c02-4711-5d0e26bb7a90c3f1-2.deleted/  the old folder, being deleted

A file is replaced by one rename. A folder cannot be: the old one is renamed aside, the new one
takes its name, and `recover` repairs a kill between the two at the next start of the same command.
It also deletes whatever else a kill left, except what belongs to a running process.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import logging
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from limner.errors import LimnerError
from limner.files.full_disk import as_os_error
from limner.files.process_identity import boot, is_hidden, started

_STAGED = re.compile(
    r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)"
    r"(-(?P<boot>[0-9a-f]{8})(?P<start>[0-9a-f]{8}))?-\d+\.(?P<state>writing|old|deleted)"
)
_LONGEST = 150
"""The most bytes of a name that go into a staging name; file systems allow 255."""
_HASHED = "hash-"
_FOREIGN = {"writing": 24 * 3600, "old": 60, "deleted": 60}
"""Seconds after which staging folders of another machine, on a shared disk, count as abandoned."""

_NO_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of a file system that cannot sync folders (shared folders of virtual machines, some of
FUSE). The files in them are synced all the same."""

_numbers = itertools.count()
_mine: set[str] = set()
"""Staging paths of this process, whose id may be that of an earlier one."""

log = logging.getLogger(__name__)


@contextlib.contextmanager
def replacing(
    path: Path,
    folder: bool = False,
    durable: bool = True,
    tidy: bool = True,
    needed: int | None = None,
    check: Callable[[Path], object] | None = None,
) -> Iterator[Path]:
    """Context manager with a temporary path; on success, the file is moved to `path`.

    It gets the mode that the umask gives. Parent folders are created.

    Args:
        folder: the temporary path is an existing, empty folder; else it is a file to be created.
        durable: the data is on disk before the rename, and so is the rename when this returns.
        tidy: first clean up what a killed process left of the same path (`recover`). For many files
            in one folder, a single `recover_in` is quicker.
        needed: bytes that it will take, for the message if the disk is full.
        check: raises LimnerError if the existing folder must not be replaced, because files may
            have appeared since the command began. Then it stays, and what was written goes to a
            free name beside it.

    Raises:
        LimnerError: `check` refused, and the message says where the new data is; or `path` is a
            folder that cannot be replaced (`refuse_mounted`).
        DiskFull: there is no room; `path` is as it was.
        OSError: from the block, or because it could not be written for another reason.
    """
    path = Path(os.path.realpath(path))
    if folder:
        refuse_mounted(path)
    if tidy:
        recover(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _owned(path, "writing") as staging:
        try:
            staging.mkdir()
            written = staging if folder else staging / path.name
            yield written
            _give_modes(staging)
            if durable:
                for file in [*staging.rglob("*"), staging] if folder else [written]:
                    sync(file)
            _put(written, path, check)
        except BaseException as error:
            told = as_os_error(error, staging, path, needed)
            shutil.rmtree(staging, ignore_errors=True)
            if told is not None:
                raise told from None
            raise
        if not folder:
            shutil.rmtree(staging, ignore_errors=True)
        if durable:
            sync(path.parent)


def write_text_whole(path: Path, text: str, durable: bool = True, tidy: bool = True) -> None:
    """Write a small UTF-8 file atomically, keeping the line ends of the text. Raises OSError.

    Lone surrogates (as in names of files that are not UTF-8) are written as JSON escapes.
    """
    with replacing(path, durable=durable, tidy=tidy) as staging:
        staging.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def recover(path: Path) -> None:
    """Clean up after a kill while `path` was being replaced."""
    path = Path(os.path.realpath(path))
    recover_in(path.parent, path)


def recover_in(folder: Path, path: Path | None = None) -> None:
    """Clean up after kills while anything in a folder was being replaced.

    Args:
        path: only what belongs to this path.
    """
    folder = Path(os.path.realpath(folder))
    for entry in _staged_in(folder):
        staged = _STAGED.fullmatch(entry.name)
        if staged is None or (path is not None and staged["name"] != _stem(path.name)):
            continue
        place = path or folder / staged["name"]
        if place.name.startswith(_HASHED) or _is_alive(entry, staged):
            continue
        with contextlib.suppress(OSError):  # another process does it, or we may not
            if staged["state"] == "old" and not place.exists():
                os.replace(entry, place)
                log.warning("restored %s, which was being replaced when a run was killed", place)
                continue
            shutil.rmtree(entry)
            if staged["state"] == "writing":
                log.warning("removed %s, which a killed run left half-written", entry)


def remove(folder: Path) -> None:
    """Delete a folder; a kill halfway leaves nothing under its name. Raises OSError."""
    with doomed(folder) as place:
        os.replace(folder, place)
        shutil.rmtree(place, ignore_errors=True)


def doomed(path: Path) -> contextlib.AbstractContextManager[Path]:
    """A hidden path beside `path` that does not exist yet, for what is to be deleted: after a kill,
    `recover` deletes it."""
    return _owned(Path(os.path.realpath(path)), "deleted")


def is_staging(name: str) -> bool:
    """Whether a name is that of a staging file or folder."""
    return _STAGED.fullmatch(name) is not None


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk."""
    if os.name == "nt":
        if path.is_file():  # Windows syncs only files open for writing
            with path.open("r+b") as file:
                os.fsync(file.fileno())
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        import fcntl

        if full := getattr(fcntl, "F_FULLFSYNC", None):  # macOS: fsync leaves it in the drive
            with contextlib.suppress(OSError):
                fcntl.fcntl(descriptor, full)
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def refuse_mounted(folder: Path) -> None:
    """Raises LimnerError for a folder that cannot be replaced because it is a mount point. To be
    called before the work, not after it."""
    if os.path.ismount(folder):
        raise LimnerError(
            f"{folder} is a mount point, which cannot be replaced as a whole; use a folder in it, "
            f"such as {folder / 'new'}"
        )


def _put(written: Path, path: Path, check: Callable[[Path], object] | None) -> None:
    """Rename `written` to `path`; an existing folder is renamed aside first."""
    if not (written.is_dir() and path.is_dir()):
        os.replace(written, path)
        return
    with _owned(path, "old") as old:
        os.replace(path, old)
        try:
            if check is not None:
                check(old)  # aside, where nothing more can come
            os.replace(written, path)
        except LimnerError:
            os.replace(old, path)
            beside = _free_name(path)
            os.replace(written, beside)
            raise LimnerError(
                f"{path} was changed by another program in the meantime and is kept. What was "
                f"written is in {beside}."
            ) from None
        except BaseException:
            os.replace(old, path)
            raise
        sync(path.parent)
        remove(old)


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(name for name in names if not os.path.lexists(name))


def _give_modes(staging: Path) -> None:
    """Give files the mode that the umask would, because some libraries write them readable by the
    owner only (0600). The umask (or the folder's own rule) shows in the new staging folder."""
    if os.name == "nt":
        return
    folders = staging.stat().st_mode & 0o777
    for path in staging.rglob("*"):
        mode = folders if path.is_dir() else folders & 0o666
        if not path.is_symlink() and path.stat().st_mode & 0o777 != mode:
            # On network drives one may write files that one does not own, but not change their
            # mode.
            with contextlib.suppress(OSError):
                path.chmod(mode)


@contextlib.contextmanager
def _owned(path: Path, state: str) -> Iterator[Path]:
    staged = _STAGED.fullmatch(path.name)  # a staged name keeps its original stem
    stem = staged["name"] if staged else _stem(path.name)
    name = f".{stem}.{_host()}-{_process()}-{next(_numbers)}.{state}"
    place = path.with_name(name)
    _mine.add(str(place))
    try:
        yield place
    finally:
        _mine.discard(str(place))


def _stem(name: str) -> str:
    """A name, or its hash if it is too long for a staging name."""
    data = os.fsencode(name)
    if len(data) <= _LONGEST:
        return name
    return _HASHED + hashlib.blake2b(data, digest_size=16).hexdigest()


def _staged_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if e.name.startswith(".") and is_staging(e.name)]
    except OSError:
        return []
    return [folder / name for name in sorted(names)]


def _is_alive(entry: Path, staged: re.Match[str]) -> bool:
    """Whether the process that owns this entry is still running."""
    import psutil

    try:
        about = entry.stat()
    except OSError:
        return True  # gone: its owner was faster
    changed = max(about.st_mtime, about.st_ctime)
    if staged["host"] != _host():
        return time.time() - changed < _FOREIGN[staged["state"]]
    pid = int(staged["pid"])
    if pid == os.getpid():
        return str(entry) in _mine
    if staged["boot"] and staged["boot"] != _hash(boot()):
        # From before this machine was rebooted, or from another one with its name.
        recent = time.time() - changed < _FOREIGN[staged["state"]]
        return recent and changed > psutil.boot_time()
    try:
        owner = psutil.Process(pid)
        if owner.status() == psutil.STATUS_ZOMBIE:
            return False
        if staged["start"]:
            return staged["start"] == _hash(str(started(pid)))
        return owner.create_time() < changed + 2  # else its id was reused
    except psutil.NoSuchProcess:
        return is_hidden(pid)
    except psutil.Error:
        return True


def _process() -> str:
    """This process: its id, and what tells it from others with the same id."""
    return f"{os.getpid()}-{_hash(boot())}{_hash(str(started(os.getpid())))}"


@functools.cache
def _host() -> str:
    """Identifies this machine or container, within which process ids are unique."""
    try:
        numbers = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbers = ""
    return _hash(f"{platform.node()} {numbers}")


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
