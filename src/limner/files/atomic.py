"""Atomic writes: a file or folder is replaced as a whole, or left unchanged (`replacing`).

What is being written is in a hidden folder beside its place, which names its owner:

    .vae.1f3a9c02-4711-5d0e26bb7a90c3f1-0.writing/  being written by process 4711 of this machine
    .vae.1f3a9c02-4711-5d0e26bb7a90c3f1-1.old/      what gives way, for the moment of two renames
    .vae.1f3a9c02-4711-5d0e26bb7a90c3f1-2.deleted/  what gave way

A file is replaced by one rename. A folder cannot be: the old one is renamed aside, the new one
takes its name, and a kill between the two is put right by `recover`, at the next start of the same
command. There also goes whatever else a kill left; what belongs to a living process is left alone.
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
"""Bytes of a name that are part of a staging name; file systems end at 255."""
_HASHED = "hash-"
_FOREIGN = {"writing": 24 * 3600, "old": 60, "deleted": 60}
"""Seconds after which what another machine began, on a shared disk, counts as left behind."""

_NO_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Of a folder: this file system (shared folders of virtual machines, some of FUSE) cannot sync the
names in it. Its files are synced all the same."""

_numbers = itertools.count()
_mine: set[str] = set()
"""What this process is at; it may have the number of one that is gone."""

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

    It has the mode that the umask gives. Its parent folders are made.

    Args:
        folder: it is a folder, which is there already, and empty.
        durable: it has reached the disk before it takes its name, and that too when this returns.
        tidy: first do away with what a killed process left of the same (`recover`). Where a folder
            has many such files `recover_in`, once, is quicker.
        needed: bytes that it will take, to say so when the disk is full.
        check: of a folder, raises LimnerError if what is there by then is not to be replaced: files
            may have come since the command began. Then they stay, and what was written goes to a
            free name beside them.

    Raises:
        LimnerError: `check` refused, and where what was written is instead; or `path` is a folder
            that cannot be replaced (`refuse_mounted`).
        DiskFull: there is no room; `path` is as it was.
        OSError: from the block, or for another reason why it could not be written.
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
    """Write a small UTF-8 file, whole, with line ends as they are in the text. Raises OSError.

    Lone surrogates (names of files that are no UTF-8 hold them) are written as JSON escapes them.
    """
    with replacing(path, durable=durable, tidy=tidy) as staging:
        staging.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def recover(path: Path) -> None:
    """Clean up after a kill while `path` was being replaced."""
    path = Path(os.path.realpath(path))
    recover_in(path.parent, path)


def recover_in(folder: Path, path: Path | None = None) -> None:
    """The same for all that is written into a folder.

    Args:
        path: only what is written there.
    """
    folder = Path(os.path.realpath(folder))
    for entry in _staged_in(folder):
        staged = _STAGED.fullmatch(entry.name)
        if staged is None or (path is not None and staged["name"] != _stem(path.name)):
            continue
        place = path or folder / staged["name"]
        if place.name.startswith(_HASHED) or _is_alive(entry, staged):
            continue
        with contextlib.suppress(OSError):  # another process is at it, or it may not be touched
            if staged["state"] == "old" and not place.exists():
                os.replace(entry, place)
                log.warning("restored %s, which was being replaced when a run was killed", place)
                continue
            shutil.rmtree(entry)
            if staged["state"] == "writing":
                log.warning("removed %s, which a killed run left half-written", entry)


def remove(folder: Path) -> None:
    """Delete a folder; a kill in the middle leaves nothing that bears its name. Raises OSError."""
    with doomed(folder) as place:
        os.replace(folder, place)
        shutil.rmtree(place, ignore_errors=True)


def doomed(path: Path) -> contextlib.AbstractContextManager[Path]:
    """A hidden place beside `path`, not made yet, for what is to be deleted: if a kill comes first,
    `recover` does it."""
    return _owned(Path(os.path.realpath(path)), "deleted")


def is_staging(name: str) -> bool:
    """Whether a file's or folder's name is that of something half-written."""
    return _STAGED.fullmatch(name) is not None


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, have reached the disk."""
    if os.name == "nt":
        if path.is_file():  # Windows syncs only what is open for writing, and no folders
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
    """Raises LimnerError for a folder that is to be replaced as a whole and cannot be renamed, as
    it is a disk or a volume of its own: to be asked before the work, and not after it."""
    if os.path.ismount(folder):
        raise LimnerError(
            f"{folder} is a mount point, which cannot be replaced as a whole; use a folder in it, "
            f"such as {folder / 'new'}"
        )


def _put(written: Path, path: Path, check: Callable[[Path], object] | None) -> None:
    """A rename; of a folder that is there already, two."""
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
    """Some libraries write files that nobody else may read (0600), as if they were temporary. The
    umask (or what else rules in this folder) shows in the folder that was just made."""
    if os.name == "nt":
        return
    folders = staging.stat().st_mode & 0o777
    for path in staging.rglob("*"):
        mode = folders if path.is_dir() else folders & 0o666
        if not path.is_symlink() and path.stat().st_mode & 0o777 != mode:
            # Network drives let people write what they do not own, and not change its mode.
            with contextlib.suppress(OSError):
                path.chmod(mode)


@contextlib.contextmanager
def _owned(path: Path, state: str) -> Iterator[Path]:
    staged = _STAGED.fullmatch(path.name)  # what gave way goes under the name of what it was
    stem = staged["name"] if staged else _stem(path.name)
    name = f".{stem}.{_host()}-{_process()}-{next(_numbers)}.{state}"
    place = path.with_name(name)
    _mine.add(str(place))
    try:
        yield place
    finally:
        _mine.discard(str(place))


def _stem(name: str) -> str:
    """A name, or its hash where it is so long that more would not fit."""
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
    """Whether the process is still there that began it."""
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
        # Of this machine before it was started anew, or of another one that has its name.
        recent = time.time() - changed < _FOREIGN[staged["state"]]
        return recent and changed > psutil.boot_time()
    try:
        owner = psutil.Process(pid)
        if owner.status() == psutil.STATUS_ZOMBIE:
            return False
        if staged["start"]:
            return staged["start"] == _hash(str(started(pid)))
        return owner.create_time() < changed + 2  # else another has its number by now
    except psutil.NoSuchProcess:
        return is_hidden(pid)
    except psutil.Error:
        return True


def _process() -> str:
    """This one: its number, and what tells it from others that had or will have that."""
    return f"{os.getpid()}-{_hash(boot())}{_hash(str(started(os.getpid())))}"


@functools.cache
def _host() -> str:
    """Of this machine, or container: within it a process has its number alone."""
    try:
        numbers = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbers = ""
    return _hash(f"{platform.node()} {numbers}")


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
