"""Memory: how much is free, recognising out-of-memory errors, retrying with smaller batches."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TypeAlias, TypeVar

import torch

T = TypeVar("T")


def keep_freed_memory() -> None:
    """Let the C library keep what a step frees, for the next step to use; on Linux only.

    glibc gives large blocks back to the system and the system must then clear each of their pages
    again: 30,000 page faults per step of the demo, 1.08 times the time (benchmarks/step_cost.py).
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library, such as musl
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, at its largest


def give_back_freed_memory() -> None:
    """The opposite, once: before something large is loaded that training does not need."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    # The allocators of the CPU and of Apple have no error type; cuBLAS has its own message.
    said = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    return any(words in str(error) for words in said)


def in_parts_that_fit(size: int, do: Callable[[int], T]) -> T:
    """`do(size)`, or with half of that, and half again, until memory suffices for it."""
    while True:
        try:
            return do(size)
        except Exception as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        # Outside of the handler, which keeps what the failed attempt had in memory.
        give_back_freed_memory()
        size //= 2


def free_memory(device: torch.device) -> int:
    """Bytes that a new run could take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_of_machine()


def free_of_machine() -> int:
    """Bytes that a process could take before the machine, or the job or container that it is in
    (see `job_limits`), has none left."""
    import psutil

    left = (most - used for most, used in job_limits())
    return max(0, min([psutil.virtual_memory().available, *left]))


def whole_memory() -> int:
    """Bytes that the machine has, or the job or container may take."""
    import psutil

    return min([psutil.virtual_memory().total, *(most for most, _ in job_limits())])


def job_limits(proc: Path = Path("/proc"), mounted: Path = Path("/sys/fs/cgroup")) -> Limits:
    """(bytes at most, bytes in use) of each control group that this process is in: a Slurm job, a
    container, a pod. Beyond that Linux kills it, however much the machine has. [] elsewhere."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    found: Limits = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, inside = rest.partition(":")
        if number == "0":
            roots, names = (mounted, mounted / "unified"), V2
        elif "memory" in controllers.split(","):
            roots, names = (mounted / "memory", mounted / controllers), V1
        else:
            continue
        # A container may see its own group at the root, whatever it is called outside.
        inner = PurePosixPath(inside.lstrip("/"))
        for root in dict.fromkeys(roots):
            for group in (inner, *inner.parents):
                with contextlib.suppress(OSError, ValueError):
                    found.append(_limit(root / group, *names))
    return found


Limits: TypeAlias = "list[tuple[int, int]]"
V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
V2 = "memory.max", "memory.current", "inactive_file"
"""What control groups of either version call their limit, what is in use, and what of that is
copies of files, which give way."""


def _limit(group: Path, most: str, used: str, files: str) -> tuple[int, int]:
    """Raises ValueError where it has none ("max"), OSError where there is no such group."""
    limit, inside = int((group / most).read_text()), int((group / used).read_text())
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return limit, max(0, inside - int(stat.get(files, 0)))
