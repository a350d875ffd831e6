"""What the held-out losses say about a run, in words, when they say something."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

WINDOW = 50
"""Logged losses that a new one is compared with."""
PATIENCE = 3
"""Measurements in a row that must agree before a run is called anything."""


class Measurement(NamedTuple):
    step: int
    heldout: float
    trained: float
    """The same loss on pictures that were trained on, at the same levels and noise."""


def advise(history: Sequence[Measurement]) -> str | None:
    """A sentence about a run that is not learning, or that has begun to memorise; else None.

    Args:
        history: all measurements so far, oldest first.
    """
    if len(history) <= PATIENCE:
        return None
    recent, first = history[-PATIENCE:], history[0]
    if all(m.trained > 0.95 * first.trained for m in recent):
        return (
            f"not learning: the loss on trained pictures is {recent[-1].trained:.3g}, hardly "
            f"below the {first.trained:.3g} of step {first.step}; try another "
            "training.learning_rate, and see whether captions and pictures belong together"
        )
    best = min(history, key=lambda m: m.heldout)
    worse = all(m.step > best.step and m.heldout > 1.02 * best.heldout for m in recent)
    if worse and recent[-1].trained < best.trained:
        return (
            f"memorising: the held-out loss was best at step {best.step} ({best.heldout:.3g}) and "
            f"is {recent[-1].heldout:.3g} now, while trained pictures still get better; more "
            "pictures, model.dropout, or a shorter run would help"
        )
    return None


class Spikes:
    """Warns once when the training loss jumps, and again only after it has come down.

    A jump is a loss above the median of the last `WINDOW` by six times their spread (the median
    absolute deviation, as if normal) and by a quarter at least.
    """

    def __init__(self, earlier: Iterable[float] = ()) -> None:
        self.recent: deque[float] = deque(earlier, maxlen=WINDOW)
        self.up = False

    def see(self, loss: float, step: int) -> str | None:
        """A sentence about the loss of this step, if there is something to say."""
        if not math.isfinite(loss):
            return None
        jumped = False
        if len(self.recent) >= WINDOW // 5:
            median = statistics.median(self.recent)
            spread = 1.4826 * statistics.median(abs(x - median) for x in self.recent)
            jumped = loss > max(median + 6 * spread, 1.25 * median)
        news, self.up = jumped and not self.up, jumped
        if not jumped:
            self.recent.append(loss)
        if not news:
            return None
        return (
            f"the loss jumped to {loss:.3g} at step {step}, from about {median:.3g}: if it does "
            "not come back, go on from an older checkpoint with a lower training.learning_rate"
        )
