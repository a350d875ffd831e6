"""What is told of a drawing on its way to the page. Who reads slowly holds up nobody's drawing."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

MOST_PROGRESS = 32
"""Events of progress that wait for a reader; of more, the oldest are left out."""
MOST_WAITING = 256 * 2**20
"""Bytes that wait for a reader; who lets more wait is taken to have left."""


class Events:
    """Args:
    write: sends bytes, and raises OSError when they are not taken.

    A thread of its own calls `write`, so that the one that draws never waits for a connection.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._changed = threading.Condition()
        self._left = self._finished = False
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def tell(self, event: dict[str, Any]) -> None:
        """Returns at once. Raises ConnectionError if nobody listens any more."""
        line = json.dumps(event).encode() + b"\n"
        with self._changed:
            if self._left:
                raise ConnectionAbortedError("nobody listens any more")
            self._waiting.append((event["kind"], line))
            progress = [entry for entry in self._waiting if entry[0] == "progress"]
            if len(progress) > MOST_PROGRESS:
                self._waiting.remove(progress[0])
            if sum(len(line) for _, line in self._waiting) > MOST_WAITING:
                self._leave()
            self._changed.notify()

    def finish(self) -> None:
        """Wait until all is sent, or nobody listens."""
        with self._changed:
            self._finished = True
            self._changed.notify()
        self._thread.join()

    def _leave(self) -> None:
        self._left = True
        self._waiting.clear()

    def _send(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._finished or self._left)
                if not self._waiting:
                    return
                _, line = self._waiting.popleft()
            try:
                self._write(line)
            except OSError:  # closed, or not read from for too long
                with self._changed:
                    self._leave()
                return
