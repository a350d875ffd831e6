"""One process at a time writes into a folder: a small file there says which, where, since when.

The file, and not a lock of the operating system's: those are inherited by worker processes, which
outlive a killed run for seconds, and not every network drive has them.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import functools
import hashlib
import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from limner.console import say
from limner.errors import LimnerError

TRAINING = ".limner-train.lock"
"""Of a run. Where it lies, a run of Limner's began, however early it was killed."""
BEAT = 15.0
"""Seconds after which a holder touches its file again."""
PATIENCE = 90.0
"""Seconds for which a file of another machine is watched; untouched for so long it is left over."""
SETTLE = 0.1
"""Seconds after which of two processes that took over one file at once only one is in it."""
SAME_START = 5.0
"""Seconds by which the clock may have been set since a process began."""


@dataclass(frozen=True)
class Holder:
    """Who writes into a folder."""

    host: str
    pid: int
    space: str
    """Within which the number means something: two containers may be called by one host name."""
    began: float
    """When the process began, Unix time: numbers of processes are given out again."""
    since: float
    """When it took the folder, Unix time."""

    @classmethod
    def this_process(cls) -> Holder:
        import psutil

        began = psutil.Process().create_time()
        return cls(socket.gethostname(), os.getpid(), _space(), began, time.time())

    def is_of_this_machine(self) -> bool:
        return (self.host, self.space) == (socket.gethostname(), _space())

    def is_running(self) -> bool:
        """Of this machine."""
        import psutil

        if self.pid == os.getpid():  # which would know: a process before it had the same number
            return False
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return abs(process.create_time() - self.began) < SAME_START
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True


class FolderLock:
    """Context manager: within it no other process writes there. A process may hold several of one
    place.

    What a process left behind that was killed, or whose machine lost its power, is taken over:
    at once if it ran on this machine, else after PATIENCE seconds without a sign of life.

    Args:
        place: the folder (or file) that is written.
        otherwise: what else to do, such as "name another training.output_dir".
        name: of the lock's file in the folder. None: it lies beside `place`, which is replaced as
            a whole.

    Raises:
        LimnerError: on entering, if another process writes there.
        OSError: the file cannot be written.
    """

    def __init__(self, place: Path, otherwise: str, name: str | None = None) -> None:
        self.place, self.otherwise = place, otherwise
        whole = Path(os.path.abspath(place.expanduser()))
        if name is None:
            # A link is replaced, a folder by several names is one.
            self.path = whole.parent.resolve() / f".{_short(whole.name)}.limner.lock"
        else:
            self.path = whole.resolve() / name
        self.held = False

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Enter; nothing if that was done already."""
        if self.held:
            return
        with _guard:
            key = os.getpid(), str(self.path)
            if key not in _taken:
                _taken[key] = _Taken(self)
            _taken[key].count += 1
        self.held = True

    def release(self) -> None:
        """Leave; nothing if that was done already."""
        if not self.held:
            return
        self.held = False
        with _guard:
            # A forked process has a copy of this object, and does not hold anything.
            key = os.getpid(), str(self.path)
            if (taken := _taken.get(key)) is None:
                return
            taken.count -= 1
            if not taken.count:
                del _taken[key]
                taken.leave()


class _Taken:
    """The file of a folder that this process holds, touched by a thread of its own."""

    def __init__(self, lock: FolderLock) -> None:
        self.path, self.count = lock.path, 0
        self.made = [p for p in (self.path.parent, *self.path.parent.parents) if not p.exists()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.holder = Holder.this_process()
        self._take(lock)
        self.ended = threading.Event()
        threading.Thread(target=self._beat, daemon=True, name="folder lock").start()

    def leave(self) -> None:
        """Remove the file, and folders that were made for it and stayed empty."""
        self.ended.set()
        with contextlib.suppress(OSError):
            if _read(self.path) == self.holder:
                _unlink(self.path)
            for folder in self.made:
                folder.rmdir()

    def _take(self, lock: FolderLock) -> None:
        while not self._create():
            other = _read(self.path)
            if other is not None and _is_alive(self.path, other):
                raise in_use(lock, other)
            if other is not None or self.path.exists():
                self._take_over(other)
            if _read(self.path) == self.holder:
                return

    def _create(self) -> bool:
        try:
            file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            os.write(file, self._text())
        except OSError:
            os.close(file)
            _unlink(self.path)
            raise
        os.close(file)
        return True

    def _take_over(self, other: Holder | None) -> None:
        mine = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            mine.write_bytes(self._text())
            if _read(self.path) == other:
                with contextlib.suppress(PermissionError):  # Windows, while another one reads it
                    os.replace(mine, self.path)
        finally:
            mine.unlink(missing_ok=True)
        time.sleep(SETTLE)

    def _text(self) -> bytes:
        return json.dumps(asdict(self.holder)).encode()

    def _beat(self) -> None:
        while not self.ended.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)


_guard = threading.RLock()
_taken: dict[tuple[int, str], _Taken] = {}


@atexit.register
def _leave_all() -> None:
    for (pid, _), taken in list(_taken.items()):
        if pid == os.getpid():
            taken.leave()


def in_use(lock: FolderLock, holder: Holder) -> LimnerError:
    """The error that says who writes there."""
    since = datetime.datetime.fromtimestamp(holder.since, datetime.UTC)
    gone = (
        ""
        if holder.is_of_this_machine()
        else f". If nothing runs there any more, delete {lock.path}"
    )
    return LimnerError(
        f"{lock.place} is in use: process {holder.pid} on {holder.host} has been writing to it "
        f"since {since:%Y-%m-%d %H:%M:%S} UTC. Wait until it ends, or {lock.otherwise}{gone}"
    )


def _is_alive(path: Path, holder: Holder) -> bool:
    if holder.is_of_this_machine():
        return holder.is_running()
    say(
        f"{path.parent} was in use by process {holder.pid} on {holder.host}, another machine: "
        f"looking for {PATIENCE:.0f} seconds whether it still is",
        err=True,
    )
    before, end = _touched(path), time.monotonic() + PATIENCE
    while time.monotonic() < end:
        time.sleep(min(1.0, PATIENCE / 10))
        if _touched(path) != before:
            return True
    return False


def _touched(path: Path) -> int | None:
    """When the file was last touched; opened, so that a network drive's cache does not answer."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _read(path: Path) -> Holder | None:
    """Who is in the file; None: nobody, also after the second that writing it may take."""
    for _ in range(10):
        try:
            found = Holder(**json.loads(path.read_bytes()))
            datetime.datetime.fromtimestamp(found.since, datetime.UTC)
            if isinstance(found.pid, int) and isinstance(found.began, float):
                return found
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, OverflowError):
            pass
        time.sleep(0.05)
    return None


def _unlink(path: Path) -> None:
    for _ in range(10):
        try:
            return path.unlink(missing_ok=True)
        except PermissionError:  # Windows, while another process reads it
            time.sleep(0.05)


def _short(name: str) -> str:
    """A name, or its hash where it is so long that no more would fit."""
    data = os.fsencode(name)
    return name if len(data) <= 150 else hashlib.blake2b(data, digest_size=16).hexdigest()


@functools.cache
def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
