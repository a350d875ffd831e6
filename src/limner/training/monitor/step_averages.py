"""Averages over the updates since the last line of the log."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from limner.training.train_step import StepResult


@dataclass(frozen=True)
class Averages:
    """Over updates, and over processes."""

    loss: float
    norm: float
    """NaN where every update was skipped."""
    updates: int
    """Those that were skipped included."""
    skipped: int


class StepAverages:
    """Sums up updates until `take`."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.loss = self.norm = 0.0
        self.steps = self.skipped = 0

    def add(self, updated: StepResult) -> None:
        if updated.skipped:
            self.skipped += 1
        else:
            self.loss, self.norm = self.loss + updated.loss, self.norm + updated.norm
            self.steps += 1

    def take(self, accelerator: Accelerator) -> Averages:
        """The averages so far, of all processes, each of which calls this; then begin anew."""
        sums = torch.tensor(
            [self.loss, self.norm, self.steps, self.skipped],
            dtype=torch.float64,
            device=accelerator.device if accelerator.device.type == "cuda" else "cpu",
        )
        self.forget()
        loss, norm, steps, skipped = accelerator.reduce(sums, "mean").tolist()
        loss, norm = (loss / steps, norm / steps) if steps else (math.nan, math.nan)
        return Averages(loss, norm, round(steps + skipped), round(skipped))
