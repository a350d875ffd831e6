"""Memory of the machine: giving it back, and going on in smaller parts where it is short."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable
from typing import TypeVar

import torch
import torch._dynamo

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
    """Whether an error says that memory ran out, on a device or on the processor."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    # The processor's allocator and Apple's have no type of their own; cuBLAS has its own words.
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
    import psutil

    return psutil.virtual_memory().available
