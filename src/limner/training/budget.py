"""How long a run goes on: so many updates, or as many as fit into so many minutes."""

from __future__ import annotations

import math
import statistics
import time

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from limner.checkpoint import TrainingState
from limner.config import Config

clock = time.perf_counter
"""Seconds; benchmarks count those of the processor instead."""
LATE = 1.15
"""A run that was promised minutes stops at this share of them even if steps are left."""


class Budget:
    """Keeps the time of a run and fixes its number of updates.

    With `max_steps` or `num_epochs` the number is known from the start. With `max_minutes` alone it
    is fixed once, when the learning rate's decay is due, from the speed so far; it is then part of
    the training state, so that a resumed run decays as the first one would have.
    """

    def __init__(
        self, config: Config, state: TrainingState, accelerator: Accelerator, num_rows: int
    ) -> None:
        settings = config.training
        self.state, self.accelerator = state, accelerator
        self.decay_share = config.lr_scheduler.decay_share
        self.seconds = settings.max_minutes * 60 if settings.max_minutes else None
        self.images_per_step = (
            settings.micro_batch_size
            * settings.gradient_accumulation_steps
            * accelerator.num_processes
        )
        self.begin = clock() - state.seconds
        self.step_seconds: list[float] = []
        self.speed_from: tuple[int, float] | None = None
        steps = settings.max_steps
        if steps is None and (settings.num_epochs or not self.seconds):
            steps = math.ceil((settings.num_epochs or 100) * num_rows / self.images_per_step)
        if steps is not None:
            state.total_steps, state.decay_start = steps, steps - round(steps * self.decay_share)

    def elapsed(self) -> float:
        """Seconds of this run, those before a resume included."""
        return clock() - self.begin

    def step_done(self, seconds: float) -> None:
        """Count one update that took so long."""
        self.state.step += 1
        self.state.images += self.images_per_step
        self.state.seconds = self.elapsed()
        self.step_seconds.append(seconds)
        if self.speed_from is None and len(self.step_seconds) == 3:
            self.speed_from = self.state.step, self.state.seconds  # compiling is over by now
        if self.state.total_steps is None and self.speed_from is not None:
            self._fix_total_steps(*self.speed_from)

    def _fix_total_steps(self, first: int, since: float) -> None:
        state = self.state
        assert self.seconds is not None
        if state.seconds < self.seconds * (1 - self.decay_share):
            return
        # Everything between the steps (held-out loss, previews) will cost its share again.
        per_step = (state.seconds - since) / max(1, state.step - first) or self.step_seconds[-1]
        fixed = [state.step + max(1, int((self.seconds - state.seconds) / per_step)), state.step]
        if self.accelerator.num_processes > 1:
            fixed = broadcast_object_list(fixed)
        state.total_steps, state.decay_start = fixed

    def finished(self) -> bool:
        state = self.state
        late = self.seconds is not None and state.seconds > self.seconds * LATE
        return late or (state.total_steps is not None and state.step >= state.total_steps)

    def seconds_left(self) -> float | None:
        """About how long it will still take; None before the first step."""
        if self.state.total_steps is None:
            assert self.seconds is not None
            return max(0.0, self.seconds - self.state.seconds)
        if not self.step_seconds:
            return None
        steps = self.state.total_steps - self.state.step
        return steps * statistics.median(self.step_seconds[-50:])

    def images_per_second(self, steps: int) -> float:
        """Over the last `steps` updates; the median, so that a pause does not count."""
        return self.images_per_step / statistics.median(self.step_seconds[-max(steps, 5) :])
