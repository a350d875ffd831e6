"""Progress events for the page. A slow reader does not block the sampling."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

MOST_PROGRESS = 32
"""Maximum number of queued progress events; beyond that the oldest is dropped."""
MOST_WAITING = 256 * 2**20
"""Maximum number of queued bytes; beyond that the reader is considered disconnected."""


class Events:
    """Args:
    write: sends bytes; raises OSError if that fails.

    `write` runs in a separate thread, so that sampling never waits for a connection.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._changed = threading.Condition()
        self._left = self._finished = False
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def tell(self, event: dict[str, Any]) -> None:
        """Queue an event without blocking. Raises ConnectionError if the client disconnected."""
        line = json.dumps(event).encode() + b"\n"
        with self._changed:
            if self._left:
                raise ConnectionAbortedError("the client has disconnected")
            self._waiting.append((event["kind"], line))
            progress = [entry for entry in self._waiting if entry[0] == "progress"]
            if len(progress) > MOST_PROGRESS:
                self._waiting.remove(progress[0])
            if sum(len(line) for _, line in self._waiting) > MOST_WAITING:
                self._leave()
            self._changed.notify()

    def finish(self) -> None:
        """Wait until all events are sent, or the client disconnects."""
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
            except OSError:  # closed or timed out
                with self._changed:
                    self._leave()
                return
