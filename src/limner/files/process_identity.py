"""Identify a process beyond its id, which may be reused, even if the clock was changed; end a
process with the one that started it."""

from __future__ import annotations

import functools
import os
import threading
import time
import uuid
from pathlib import Path


@functools.cache
def boot() -> str:
    """Of this machine since it was started. Machines may share a name (images that were copied,
    localhost), and on Linux all have one number for the space of their processes."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        node = uuid.getnode()  # a network card's, or a random number with this bit set
        return "" if node >> 40 & 1 else f"{node:012x}"


def started(pid: int) -> float:
    """When a process began, in seconds that stay the same when the clock is set: since the boot on
    Linux, elsewhere as the system wrote it down.

    Raises:
        psutil.Error: there is none, or it may not be looked at.
    """
    import psutil

    process = psutil.Process(pid)
    try:
        # psutil adds the boot, which Linux counts back from the clock of now.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(fields.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return process.create_time()


def is_hidden(pid: int) -> bool:
    """Whether there is such a process of another user, which this system does not show (hidepid,
    as on clusters)."""
    if os.name == "nt":  # there the same call would end it
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def end_with_the_parent(every: float = 1.0) -> None:
    """Let this process end, at most so many seconds later, once the one that started it is gone:
    killed, it could not end its children."""
    parent = os.getppid()

    def watch() -> None:
        import psutil

        # Windows goes on naming a parent that is gone.
        while os.getppid() == parent and psutil.pid_exists(parent):
            time.sleep(every)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
