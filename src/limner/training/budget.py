"""The training budget: a number of steps, or a time limit in minutes."""

from __future__ import annotations

import math
import statistics
import time

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from limner.checkpoint.state import TrainingState
from limner.config import Config
from limner.training.lr_schedule import checkpoint_due, decay_progress

clock = time.perf_counter
"""Seconds; benchmarks count CPU time instead."""
LATE = 1.05
"""A run with `max_minutes` stops at this multiple of them even if steps are left, which happens
only if one step takes so long that the end could not be fixed in time."""
COMPILING = 3
"""Updates at the start that are too slow to predict the time of the others."""
DRIFT = 0.01
"""Share of `max_minutes` by which the predicted end may be off before it is fixed anew."""

LEAST_MORE = 0.05
"""Share of `max_minutes` that must be left for a finished run to go on; one that ended in time has
less."""


class Budget:
    """Keeps the time of a run and fixes its number of updates.

    With `max_steps` or `num_epochs` the number is known from the start. With `max_minutes` alone it
    is fixed from the speed so far when the learning rate's decay is due. It is fixed again whenever
    the remaining time no longer suffices for the remaining steps (the machine slows down, or others
    use it too) or would suffice for more: the rate then falls from its current value to the new
    end. The number is part of the training state, so that a resumed run decays as the first one
    would have.
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
        """Duration of each update since this process began."""
        self.times = [state.seconds]
        """Seconds of the run before the first update of this process, and after each."""
        steps = settings.max_steps
        if steps is None and (settings.num_epochs or not self.seconds):
            steps = math.ceil((settings.num_epochs or 100) * num_rows / self.images_per_step)
        self.most_steps = steps
        """Number of updates that the settings ask for; None: only `max_minutes` bounds the run."""
        if steps is not None:
            decay = round(steps * self.schedule.decay_share)
            state.end_at(steps, steps - decay)
        elif self._is_given_more():
            state.total_steps = state.decay_start = None

    def _is_given_more(self) -> bool:
        """Whether a run that has come to its end has since been given more minutes."""
        state = self.state
        ended = state.total_steps is not None and state.step >= state.total_steps
        if not ended or self.seconds is None:
            return False
        left = self.seconds - state.seconds
        return left > max(LEAST_MORE * self.seconds, 2 * state.seconds / max(1, state.step))

    def elapsed(self) -> float:
        """Seconds of this run, those before a resume included."""
        return clock() - self.begin

    def step_done(self, seconds: float) -> None:
        """Count one update, which took `seconds`."""
        elapsed = self.elapsed()
        if self.seconds and self.accelerator.num_processes > 1:
            # One clock for all: they have to agree on when the run ends.
            (elapsed,) = broadcast_object_list([elapsed])
        self.state.advance(self.images_per_step, elapsed)
        self.step_seconds.append(seconds)
        self.times.append(self.state.seconds)
        if self.seconds and len(self.step_seconds) >= COMPILING and self._is_due():
            self._fix_total_steps()

    def _is_due(self) -> bool:
        state = self.state
        assert self.seconds is not None
        if state.total_steps is None:
            return state.seconds >= self.seconds * (1 - self.schedule.decay_share)
        left = state.total_steps - state.step
        if left <= 0:
            return False
        off = state.seconds + left * self.seconds_per_step() - self.seconds
        if off < 0 and state.total_steps == self.most_steps:
            return False
        return abs(off) > max(DRIFT * self.seconds, self.seconds_per_step())

    def seconds_per_step(self) -> float:
        """The recent average, including what happens between steps, such as the held-out loss and
        previews."""
        steps = len(self.times) - 1
        some = max(1, min(steps - COMPILING, max(10, steps // 4)))
        return max((self.times[-1] - self.times[-1 - some]) / some, 1e-9)

    def _fix_total_steps(self) -> None:
        state = self.state
        assert self.seconds is not None
        left = int((self.seconds - state.seconds) / self.seconds_per_step())
        total = state.step + max(1, left)
        if self.most_steps is not None:
            total = min(total, max(self.most_steps, state.step + 1))
        down = self._fallen(state.step)
        if down > 0 or state.total_steps is None:
            # A line through the current rate to the new end; it may begin before the run.
            begin = round((state.step - down * total) / (1 - down))
        else:
            begin = max(state.step, total - round(total * self.schedule.decay_share))
        state.end_at(total, begin)

    def _fallen(self, step: int) -> float:
        return decay_progress(self.schedule, step, self.state.total_steps, self.state.decay_start)

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
        """Estimated seconds left; None if not known yet. Where only time bounds the run, what is
        left of it: its number of steps is made to fit."""
        state, promised = self.state, None
        if self.seconds is not None:
            promised = max(0.0, self.seconds - state.seconds)
        if self.most_steps is None or state.total_steps is None or not self.step_seconds:
            return promised
        left = (state.total_steps - state.step) * self.seconds_per_step()
        return left if promised is None else min(left, promised)

    def share_done(self) -> float | None:
        """0 to 1 by what ends the run first, the steps that the settings ask for or their time;
        None if neither is known. (`state.total_steps`, which moves with the speed, is no measure.)
        """
        state, shares = self.state, []
        if self.seconds:
            shares.append(state.seconds / self.seconds)
        if self.most_steps:
            shares.append(state.step / self.most_steps)
        return min(1.0, max(shares)) if shares else None

    def images_per_second(self, steps: int) -> float:
        """Over the last `steps` updates; the median, so that a pause does not count."""
        return self.images_per_step / statistics.median(self.step_seconds[-max(steps, 5) :])
