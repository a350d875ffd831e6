"""Folder locks: one process at a time writes into a folder; a lock file says which one.

Locks of the operating system are not used: worker processes, which outlive a killed run for
seconds, inherit them, and not every network drive supports them.
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
from limner.files.process_identity import boot, is_hidden, started

TRAINING = ".limner-train.lock"
"""Lock file of a run. It also marks the folder as a run, however early that was killed."""
BEAT = 15.0
"""Seconds between the times that a holder touches its file."""
PATIENCE = 90.0
"""Seconds without a touch after which a file of another machine counts as abandoned."""
SETTLE = 0.1
"""Seconds after which, of two processes that took over a file at once, only one is left in it."""
SAME_START = 5.0
"""Seconds by which two readings of a process's start time may differ."""


@dataclass(frozen=True)
class Holder:
    """Who writes into a folder."""

    host: str
    pid: int
    space: str
    """Where the process id is valid: two containers, or two machines, may share a host name. A
    second line has the path of the lock file, to recognise copies. (It has no field of its own,
    because earlier versions would take the file for nobody's.)"""
    began: float
    """When the process began, according to `started`, because process ids are reused."""
    since: float
    """When it took the folder, Unix time."""

    @classmethod
    def this_process(cls, path: Path) -> Holder:
        space, began = f"{_space()}\n{path}", started(os.getpid())
        return cls(socket.gethostname(), os.getpid(), space, began, time.time())

    def is_of_this_machine(self) -> bool:
        """Whether the holder is of this machine, and since its last boot."""
        space, _, _ = self.space.partition("\n")
        return (self.host, space) == (socket.gethostname(), _space())

    def holds(self, path: Path) -> bool:
        """Whether this is the file that the holder wrote, not a copy. Only for holders of this
        machine."""
        original = self.space.partition("\n")[2]
        try:
            return not original or os.path.samefile(original, path)
        except (OSError, ValueError):
            return True  # it may have been moved

    def is_running(self) -> bool | None:
        """Whether it is still running; None: this cannot be seen. Only for holders of this
        machine."""
        import psutil

        if self.pid == os.getpid():  # an earlier process with the same id
            return False
        try:
            if psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE:
                return False
            return abs(started(self.pid) - self.began) < SAME_START
        except psutil.NoSuchProcess:
            return None if is_hidden(self.pid) else False
        except psutil.AccessDenied:
            return True


class FolderLock:
    """Context manager that keeps other processes from writing to a folder. A process may hold it
    several times.

    The lock of a process that was killed, or whose machine lost power, is taken over: at once if it
    ran on this machine, else after PATIENCE seconds without a sign of life. A sleeping machine may
    lose its lock that way: `check` notices when it wakes.

    Args:
        place: the folder (or file) to write.
        otherwise: what else to do, such as "name another training.output_dir".
        name: name of the lock file in the folder. None: it lies beside `place`, which is replaced
            as a whole.

    Raises:
        LimnerError: on entering, if another process writes there.
        OSError: the file cannot be written.
    """

    def __init__(self, place: Path, otherwise: str, name: str | None = None) -> None:
        self.place, self.otherwise = place, otherwise
        whole = Path(os.path.abspath(place.expanduser()))
        if name is None:
            # A link itself is replaced, but a folder with several names is one.
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
        """Take the lock, unless this object already has it."""
        if self.held:
            return
        with _guard:
            key = os.getpid(), str(self.path)
            if key not in _taken:
                _taken[key] = _Taken(self)
            _taken[key].count += 1
        self.held = True

    def check(self) -> None:
        """Raises LimnerError if another process has taken the lock over. Cheap: it looks only every
        BEAT seconds."""
        taken = _taken.get((os.getpid(), str(self.path)))
        if self.held and taken is not None and (other := taken.look()) is not None:
            raise LimnerError(
                f"{self.place} was taken over by process {other.pid} on {other.host} while this "
                "machine was asleep or could not reach it, so nothing more is written there. Wait "
                f"until that process ends, or {self.otherwise}"
            )

    def release(self) -> None:
        """Release the lock, if this object has it."""
        if not self.held:
            return
        self.held = False
        with _guard:
            # A forked process has a copy of this object, but holds no lock.
            key = os.getpid(), str(self.path)
            if (taken := _taken.get(key)) is None:
                return
            taken.count -= 1
            if not taken.count:
                del _taken[key]
                taken.leave()


class _Taken:
    """A lock file that this process holds; a thread touches it."""

    def __init__(self, lock: FolderLock) -> None:
        self.path, self.count = lock.path, 0
        self.made = [p for p in (self.path.parent, *self.path.parent.parents) if not p.exists()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.holder = Holder.this_process(self.path)
        self._take(lock)
        self.looked = time.time()
        self.lost: Holder | None = None
        self.ended = threading.Event()
        threading.Thread(target=self._beat, daemon=True, name="folder lock").start()

    def leave(self) -> None:
        """Remove the file, and the folders that were created for it if they are empty."""
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

    def look(self) -> Holder | None:
        """Who has taken the file over, or None."""
        # Wall-clock time, which goes on while the machine sleeps.
        if self.lost is None and abs(time.time() - self.looked) >= BEAT:
            found = _read(self.path)
            if found is None:  # it was deleted, or the drive is gone
                with contextlib.suppress(OSError):
                    self._create()
            elif found != self.holder:
                self.lost = found
            self.looked = time.time()
        return self.lost

    def _beat(self) -> None:
        while not self.ended.wait(BEAT):
            if _read(self.path) in (self.holder, None):
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


def is_lock(name: str) -> bool:
    """Whether a file's name is that of a lock in a folder."""
    return name.startswith(".limner-") and name.endswith(".lock")


def is_in_use(folder: Path) -> bool:
    """Whether a lock in this folder was touched recently. Does not wait."""
    touched = [_touched(path) for path in folder.iterdir() if is_lock(path.name)]
    return any(at is not None and time.time() - at / 1e9 < PATIENCE for at in touched)


def is_written_by(path: Path) -> bool:
    """Whether the process that holds this lock file lives, as far as can be seen. Does not wait."""
    holder = _read(path) if path.exists() else None
    if holder is None:
        return False
    if holder.is_of_this_machine():
        if not holder.holds(path):
            return False
        running = True if holder.pid == os.getpid() else holder.is_running()
        if running is not None:
            return running
    touched = _touched(path)
    return touched is not None and time.time() - touched / 1e9 < PATIENCE


def _is_alive(path: Path, holder: Holder) -> bool:
    if holder.is_of_this_machine():
        if not holder.holds(path):
            return False
        running = holder.is_running()
        if running is not None:
            return running
        where = f"on {holder.host}, which hides other users' processes"
    elif holder.host == socket.gethostname() and _is_untouched(path):
        return False  # from before a reboot, or another machine of this name
    else:
        where = f"on {holder.host}, another machine"
    say(
        f"{path.parent} was in use by process {holder.pid} {where}: "
        f"checking for {PATIENCE:.0f} seconds whether it still is",
        err=True,
    )
    before, end = _touched(path), time.monotonic() + PATIENCE
    while time.monotonic() < end:
        time.sleep(min(1.0, PATIENCE / 10))
        if _touched(path) != before:
            return True
    return False


def _is_untouched(path: Path) -> bool:
    """Whether the file was last touched over PATIENCE seconds ago, by the clock of its drive."""
    now = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        now.write_bytes(b"")
        touched, here = _touched(path), _touched(now)
        return touched is not None and here is not None and here - touched > PATIENCE * 1e9
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            now.unlink()


def _touched(path: Path) -> int | None:
    """When the file was last touched; it is opened to bypass the cache of a network drive."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _read(path: Path) -> Holder | None:
    """Who is in the file; None: nobody, even after waiting in case it is being written."""
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
    """A name, or its hash if it is too long for the name of a lock file."""
    data = os.fsencode(name)
    return name if len(data) <= 150 else hashlib.blake2b(data, digest_size=16).hexdigest()


@functools.cache
def _space() -> str:
    try:
        return f"{os.readlink('/proc/self/ns/pid')} {boot()}"
    except OSError:
        return boot()
