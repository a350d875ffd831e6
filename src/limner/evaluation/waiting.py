"""How far something slow is, in a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable

from limner.training.monitor.progress import format_duration

SAY_EVERY = 15.0  # seconds

Say = Callable[[str], None]


def telling(say: Say, what: str, every: float = SAY_EVERY) -> Callable[[int, int], None]:
    """What is told (done, of all) and says so at most every so many seconds.

    Args:
        what: "pictures drawn".
    """
    began = said = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if done and done < total and now - said >= every:
            said = now
            left = format_duration((now - began) / done * (total - done))
            say(f"{done:,} of {total:,} {what}, about {left} left")

    return progress
