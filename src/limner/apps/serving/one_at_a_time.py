"""Work for requests that is done one at a time, and stopped when the server shuts down."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOP_WITHIN = 20.0
"""Time limit for stopping what is running at shutdown, in seconds."""


class OneAtATime:
    """What holds a model, for the requests of a server's threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stopping = False

    @contextmanager
    def turn(self, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Wait until no other request is running, and let none run meanwhile.

        Args:
            waiting: called if there is another.

        Raises:
            ConnectionError: the server is shutting down.
        """
        if not self.lock.acquire(blocking=False):
            waiting()
            self.lock.acquire()
        try:
            self.go_on()
            yield
        finally:
            self.lock.release()

    def go_on(self) -> None:
        """To be called at each step. Raises ConnectionError if the server is shutting down."""
        if self.stopping:
            raise ConnectionAbortedError("the server is shutting down")

    def stop(self, within: float = STOP_WITHIN) -> bool:
        """Stop a running request at its next step, and refuse new ones. Returns whether there was
        one; waits for at most `within` seconds."""
        self.stopping = True
        if self.lock.acquire(blocking=False):  # never released, so waiting requests do not start
            return False
        self.lock.acquire(timeout=within)
        return True
