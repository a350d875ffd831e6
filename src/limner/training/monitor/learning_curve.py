"""Diagnose a run from its losses: not learning, overfitting, or residual noise."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

WINDOW = 50
"""Logged losses that a new one is compared with."""
TINY = 1e-12
"""Smaller losses are raised to this value, so that they have a logarithm."""
PATIENCE = 3
"""Consecutive measurements that must agree before there is a warning."""


class Measurement(NamedTuple):
    step: int
    heldout: float
    trained: float
    """The same loss on pictures that were trained on, at the same levels and noise."""
    by_level: Mapping[str, float] = MappingProxyType({})
    """The held-out loss at each timestep, if that is known."""

    @property
    def lowest_noise(self) -> tuple[str, float] | None:
        """The timestep with the least noise, and its held-out loss."""
        return min(self.by_level.items(), key=lambda item: int(item[0]), default=None)


def measurements(events: Iterable[Mapping[str, Any]]) -> list[Measurement]:
    """The held-out losses of a log, oldest first."""
    return [
        Measurement(e["step"], e["loss"], e.get("train_loss", math.nan), e["loss_by_level"])
        for e in events
        if e["kind"] == "heldout" and "loss" in e
    ]


def best_of(history: Sequence[Measurement]) -> Measurement | None:
    """The lowest held-out loss; None without any."""
    return min(history, key=lambda m: m.heldout, default=None)


def advise(history: Sequence[Measurement], noise_floor: float = 0.0) -> str | None:
    """A warning if the run is not learning, cannot remove its noise, or has begun to overfit; else
    None.

    Args:
        history: all measurements so far, oldest first.
        noise_floor: the loss that remains because the noise does not fit through the width of the
            model (`limner.config.defaults.noise_floor`).
    """
    if len(history) <= PATIENCE:
        return None
    recent, first = history[-PATIENCE:], history[0]
    if all(m.trained > 0.95 * first.trained for m in recent):
        return (
            f"not learning: the loss on trained pictures is {recent[-1].trained:.3g}, hardly below "
            f"the {first.trained:.3g} of step {first.step}; try another training.learning_rate, "
            "and check that captions match their pictures"
        )
    lowest = recent[-1].lowest_noise
    if noise_floor and lowest is not None and lowest[1] > 0.9 * noise_floor:
        return (
            f"noise stays: the held-out loss at timestep {lowest[0]} of 1000, where there is "
            f"almost no noise, is {lowest[1]:.2g} and cannot fall below {noise_floor:.2g}, because "
            "a patch has more values than the model's width; set scheduler.prediction_type=sample "
            "or a smaller model.patch_size, and start over"
        )
    best = best_of(history)
    assert best
    worse = all(m.step > best.step and m.heldout > 1.02 * best.heldout for m in recent)
    if worse and recent[-1].trained < best.trained:
        return (
            f"memorising: the held-out loss was best at step {best.step} ({best.heldout:.3g}) and "
            f"is {recent[-1].heldout:.3g} now{_where(best, recent[-1])}, while the loss on trained "
            "pictures still falls; more pictures, model.dropout, or a shorter run would help"
        )
    return None


def _where(best: Measurement, now: Measurement) -> str:
    """At which noise levels the loss got worse; empty if at all of them."""
    worse = [t for t, loss in now.by_level.items() if loss > 1.02 * best.by_level.get(t, math.inf)]
    if not worse or len(worse) == len(now.by_level):
        return ""
    return f", worse at timestep{'s' * (len(worse) > 1)} {', '.join(worse)} of 1000"


class Spikes:
    """Detects jumps of the training loss; warns only about the first.

    A jump is a loss that is a quarter above the highest of the last n <= `WINDOW`, and above their
    median by 6 + 20 / n times their spread (the median absolute deviation, as if normal). Median
    and spread are taken of logarithms, because losses scatter by factors, and the threshold is
    higher for few losses, whose spread is uncertain. In a short fine-tuning the loss begins low,
    scatters, and rises within a few steps as training moves to less noise; none of that is a jump.

    Args:
        earlier: the losses that were logged before, so that a resumed run behaves like an
            uninterrupted one.
    """

    def __init__(self, earlier: Iterable[float] = ()) -> None:
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.up = self.jumped = False
        """Whether the last loss was above the threshold, and whether it was the first to be."""
        self.count = 0
        for loss in earlier:
            self.see(loss, 0)

    def see(self, loss: float, step: int) -> str | None:
        """A warning if the loss of this step is the first to jump."""
        self.jumped = False
        if not math.isfinite(loss):
            return None
        above = False
        if len(self.recent) >= WINDOW // 5:
            logarithms = [math.log(max(x, TINY)) for x in self.recent]
            middle = statistics.median(logarithms)
            spread = 1.4826 * statistics.median(abs(x - middle) for x in logarithms)
            far = middle + (6 + 20 / len(logarithms)) * spread
            above = loss > 1.25 * max(self.recent) and math.log(max(loss, TINY)) > far
            median = math.exp(middle)
        self.jumped, self.up = above and not self.up, above
        if not above:
            self.recent.append(loss)
        self.count += self.jumped
        if not self.jumped or self.count > 1:
            return None
        return (
            f"the loss jumped to {loss:.3g} at step {step}, from about {median:.3g}; if it does "
            "not recover, resume from an older checkpoint with a lower training.learning_rate "
            "(further jumps are counted as `jumped` in log.jsonl)"
        )
