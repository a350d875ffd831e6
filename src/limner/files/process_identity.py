"""Identify a process beyond its id, which may be reused, even if the clock was changed; end a
process together with its parent."""

from __future__ import annotations

import functools
import os
import threading
import time
import uuid
from pathlib import Path


@functools.cache
def boot() -> str:
    """Identifies this machine and its boot. Machines may share a name (copied images, localhost),
    and on Linux all have the same number for their process namespace."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        node = uuid.getnode()  # from a network card, or random with this bit set
        return "" if node >> 40 & 1 else f"{node:012x}"


def started(pid: int) -> float:
    """When a process began, in seconds that do not change when the clock is set: since boot on
    Linux, elsewhere as the system recorded it.

    Raises:
        psutil.Error: there is no such process, or access is denied.
    """
    import psutil

    process = psutil.Process(pid)
    try:
        # psutil adds the boot time, which Linux derives from the current clock.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(fields.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return process.create_time()


def is_hidden(pid: int) -> bool:
    """Whether another user has a process of this id that this system hides (hidepid, as on
    clusters)."""
    if os.name == "nt":  # there the same call would kill it
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def end_with_the_parent(every: float = 1.0) -> None:
    """End this process within `every` seconds of its parent's end: a killed parent cannot end its
    children."""
    parent = os.getppid()

    def watch() -> None:
        import psutil

        # Windows still names a parent that is gone.
        while os.getppid() == parent and psutil.pid_exists(parent):
            time.sleep(every)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
