"""What the held-out losses say about a run, in words, when they say something."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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
