"""A limit on the decoded pixels that a process holds at once, over all its threads.

A PNG of 21 kB may hold 177 megapixels. One of them is a picture; twenty at once are all memory.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

BYTES_AT_ONCE = 2**30
"""Of decoded pictures that a process holds at once; a larger one is decoded alone."""
BYTES_PER_PIXEL = 8
"""Pillow keeps four of an RGB picture, and as many of what it is converted to."""


class DecodeBudget:
    """Threads take a share before they decode, and wait where too little is left.

    Args:
        limit: bytes. Whoever wants more than that waits until nobody else has anything.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.reset()

    def reset(self) -> None:
        """Nothing is held: in a forked process none of the other threads is there."""
        self.used = 0
        self.free = threading.Condition()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """A share of `size` bytes, for as long as the block runs."""
        with self.free:
            while self.used and self.used + size > self.limit:
                self.free.wait()
            self.used += size
        try:
            yield
        finally:
            with self.free:
                self.used -= size
                self.free.notify_all()


BUDGET = DecodeBudget(BYTES_AT_ONCE)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=BUDGET.reset)
