"""How long a run goes on: so many updates, or as many as fit into so many minutes."""

from __future__ import annotations

import math
import statistics
import time

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from limner.checkpoint import TrainingState
from limner.config import Config
from limner.training.schedule import checkpoint_due, fallen

clock = time.perf_counter
"""Seconds; benchmarks count those of the processor instead."""
LATE = 1.15
"""A run that was promised minutes stops at this share of them even if steps are left."""


class Budget:
    """Keeps the time of a run and fixes its number of updates.

    With `max_steps` or `num_epochs` the number is known from the start. With `max_minutes` alone it
    is fixed from the speed so far when the learning rate's decay is due, and again at each quarter
    of the way down, for a machine that slows down or speeds up: the rate goes on falling from where
    it is. The number is part of the training state, so that a resumed run decays as the first
    one would have.
    """

    def __init__(
        self, config: Config, state: TrainingState, accelerator: Accelerator, num_rows: int
    ) -> None:
        settings = config.training
        self.state, self.accelerator = state, accelerator
        self.settings, self.num_rows = settings, num_rows
        self.schedule = config.lr_scheduler
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
        self.by_the_clock = steps is None
        if steps is not None:
            decay = round(steps * self.schedule.decay_share)
            state.total_steps, state.decay_start = steps, steps - decay

    def elapsed(self) -> float:
        """Seconds of this run, those before a resume included."""
        return clock() - self.begin

    def step_done(self, seconds: float) -> None:
        """Count one update that took so long."""
        self.state.step += 1
        self.state.images += self.images_per_step
        self.state.seconds = self.elapsed()
        if self.seconds and self.accelerator.num_processes > 1:
            # One clock for all: they have to agree on when the run ends.
            (self.state.seconds,) = broadcast_object_list([self.state.seconds])
        self.step_seconds.append(seconds)
        if self.speed_from is None and len(self.step_seconds) == 3:
            self.speed_from = self.state.step, self.state.seconds  # compiling is over by now
        if self.by_the_clock and self.speed_from is not None and self._is_due():
            self._fix_total_steps(*self.speed_from)
            self.speed_from = self.state.step, self.state.seconds

    def _is_due(self) -> bool:
        state = self.state
        assert self.seconds is not None
        if state.total_steps is None:
            return state.seconds >= self.seconds * (1 - self.schedule.decay_share)
        before, now = (self._fallen(step) for step in (state.step - 1, state.step))
        return int(4 * before) < int(4 * now) < 4

    def _fix_total_steps(self, first: int, since: float) -> None:
        state = self.state
        assert self.seconds is not None
        # Everything between the steps (held-out loss, previews) will cost its share again.
        per_step = max((state.seconds - since) / max(1, state.step - first), 1e-9)
        total = state.step + max(1, int((self.seconds - state.seconds) / per_step))
        # The line to the new end through where the rate is now; it may begin before the run.
        down = self._fallen(state.step)
        state.decay_start = round((state.step - down * total) / (1 - down))
        state.total_steps = total

    def _fallen(self, step: int) -> float:
        return fallen(self.schedule, step, self.state.total_steps, self.state.decay_start)

    def checkpoint_due(self) -> bool:
        """Whether the settings want a checkpoint after the update that was counted last."""
        state = self.state
        return checkpoint_due(
            self.settings, state.step, state.images, self.images_per_step, self.num_rows
        )

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
