"""Roll back to the last good checkpoint after out-of-memory or repeated non-finite updates."""

from __future__ import annotations

import logging

from torch import Tensor

from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.locate import checkpoints
from limner.checkpoint.manifest import damage
from limner.checkpoint.saver import Saver
from limner.checkpoint.state import TrainingState
from limner.data.examples import Batch
from limner.distributed.processes import done_by_one
from limner.errors import LimnerError
from limner.training.batches import Batches
from limner.training.folder import set_aside_later
from limner.training.monitor.monitor import RunMonitor
from limner.training.monitor.nonfinite import diagnose
from limner.training.restore import restore
from limner.training.run import Run

log = logging.getLogger(__name__)

MOST_SKIPPED = 10
"""Consecutive non-finite updates before the weights are rolled back to a checkpoint."""
PEACE = 1000
"""Updates after which they may be rolled back again."""


class Recovery:
    """Rolls a run back to a checkpoint when it cannot continue."""

    def __init__(self, run: Run, batches: Batches, saver: Saver, monitor: RunMonitor) -> None:
        self.run, self.batches, self.saver, self.monitor = run, batches, saver, monitor
        self.half_done_at: int | None = None
        """The last step that ran out of memory during its optimizer update."""

    def repeat(self) -> None:
        """After an out-of-memory error during the optimizer step: restore a checkpoint and repeat
        the steps.

        Raises:
            LimnerError: memory already ran out in the same step before.
        """
        state = self.run.state
        if self.half_done_at is not None and state.step <= self.half_done_at:
            raise LimnerError(
                f"out of memory twice in the optimizer update of step {state.step + 1}; use a "
                "smaller model, or another machine. The last checkpoint is unchanged"
            )
        self.half_done_at = state.step
        checkpoint = self.last_good()
        restore(self.run, checkpoint)
        before = checkpoint.state if checkpoint else TrainingState(total_steps=state.total_steps)
        state.rewind(before)
        self.monitor.forget_after(state.step)
        done_by_one(self.run.is_main, lambda: set_aside_later(self.run.folder, state.step))
        log.info(
            f"out of memory during the weight update of step {self.half_done_at + 1}; repeating "
            f"the steps after step {state.step}"
        )
        self.batches.restart()

    def roll_back(self, bad: Batch) -> None:
        """After too many non-finite updates: restore older weights once, then stop with a
        diagnosis.

        The image count is not rolled back, so the pictures that led there are skipped, as in
        Chowdhery et al. 2022 (PaLM, section 5.1), who skipped the batches around a loss spike.

        Args:
            bad: a batch of the last skipped update.

        Raises:
            LimnerError: the last roll-back was less than `PEACE` updates ago; the message has a
                diagnosis.
        """
        run, state = self.run, self.run.state
        if state.rolled_back_at is not None and state.step - state.rolled_back_at < PEACE:

            def loss_of(batch: Batch) -> Tensor:
                step = run.train_step
                return step.loss(batch, step.timesteps(batch, run.decay_progress))

            reason = diagnose(run.model, loss_of, bad.to(run.device), run.dtype)
            raise LimnerError(
                f"{MOST_SKIPPED} updates in a row had a non-finite loss or gradient, again after "
                f"rolling back to a checkpoint at step {state.rolled_back_at}: {reason} The last "
                f"good checkpoint in {run.folder} is unchanged."
            )
        checkpoint = self.last_good()
        restore(run, checkpoint)
        state.note_roll_back()
        where = checkpoint.folder.name if checkpoint else "its beginning"
        log.info(
            f"{MOST_SKIPPED} updates in a row had a non-finite loss or gradient; rolled back to "
            f"the weights of {where}, skipping the pictures that led here"
        )

    def last_good(self) -> Checkpoint | None:
        """The newest intact checkpoint that was saved before the problem."""
        self.saver.wait()
        self.run.accelerator.wait_for_everyone()
        for path in reversed(checkpoints(self.run.folder)):
            if damage(path) is None:
                checkpoint = Checkpoint.open(path)
                if not checkpoint.state.skipped_in_a_row:
                    return checkpoint
        return None
