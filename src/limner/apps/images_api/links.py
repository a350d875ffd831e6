"""Images behind URLs that work for a while."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

from limner.apps.images_api.limits import LINK_LASTS, MOST_LINKED_BYTES


class Links:
    """Who knows a name may fetch the image, as with the API's own URLs: a name cannot be guessed.

    Used from one thread.

    Args:
        lasts: seconds.
        most_bytes: of all images together; beyond that the oldest are forgotten.
        now: a clock, in seconds.
    """

    def __init__(
        self,
        lasts: float = LINK_LASTS,
        most_bytes: int = MOST_LINKED_BYTES,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lasts, self.most_bytes, self.now = lasts, most_bytes, now
        self.kept: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self.size = 0

    def add(self, image: bytes) -> str:
        """Keep a file; returns the name that it is found by."""
        name = secrets.token_urlsafe(24)
        self.kept[name] = self.now() + self.lasts, image
        self.size += len(image)
        self._forget()
        return name

    def get(self, name: str) -> bytes | None:
        """None: there is none of this name, or not any more."""
        self._forget()
        return self.kept.get(name, (0.0, None))[1]

    def _forget(self) -> None:
        while self.kept:
            ends, image = next(iter(self.kept.values()))
            if ends > self.now() and self.size <= self.most_bytes:
                return
            self.kept.popitem(last=False)
            self.size -= len(image)
