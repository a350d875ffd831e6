"""Back to a checkpoint in the midst of a run: memory that ran out, or numbers that are none."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from limner.checkpoint.folder import Checkpoint, TrainingState, checkpoints, newest_good, step_of
from limner.checkpoint.manifest import damage
from limner.checkpoint.saver import Saver
from limner.errors import LimnerError
from limner.training.monitor.monitor import Watch
from limner.training.monitor.nonfinite import diagnose

if TYPE_CHECKING:
    from limner.training.trainer import Trainer

MOST_SKIPPED = 10
"""Updates in a row without a finite number before the weights go back to a checkpoint."""
PEACE = 1000
"""Updates after which they may go back once more."""


def restore_newest(trainer: Trainer, checkpoint: Checkpoint, named: bool) -> list[str]:
    """Restore a checkpoint or, where it cannot be used though its checksums are right, an older
    one; what was passed over.

    Args:
        named: somebody asked for this one, and for no other.

    Raises:
        LimnerError: none can be used. The run does not begin anew over them.
    """
    passed_over: list[str] = []
    while True:
        try:
            trainer.restore(checkpoint)
            break
        except LimnerError as error:
            older, damaged = None, list[str]()
            if not named:
                older, damaged = newest_good(trainer.folder, before=step_of(checkpoint.folder))
            if older is None:
                raise
            reason = " ".join(str(error).split())[:300]
            passed_over += [f"{checkpoint.folder.name} was passed over: {reason}", *damaged]
            checkpoint = Checkpoint.open(older)
    for field in fields(TrainingState):
        setattr(trainer.state, field.name, getattr(checkpoint.state, field.name))
    return passed_over


def last_good(trainer: Trainer, saver: Saver) -> Checkpoint | None:
    """The newest checkpoint that verifies and was saved while all was well."""
    saver.wait()
    trainer.accelerator.wait_for_everyone()
    for path in reversed(checkpoints(trainer.folder)):
        if damage(path) is None:
            checkpoint = Checkpoint.open(path)
            if not checkpoint.state.skipped_in_a_row:
                return checkpoint
    return None


def repeat(trainer: Trainer, saver: Saver, watch: Watch) -> None:
    """Memory ran out while the weights were half changed: go back, and do the steps again."""
    state = trainer.state
    if trainer.half_done_at is not None and state.step <= trainer.half_done_at:
        raise LimnerError(
            f"memory ran out twice in the optimizer's part of step {state.step + 1}: take a "
            "smaller model, or another machine; the last checkpoint is as it was"
        )
    trainer.half_done_at = state.step
    checkpoint = last_good(trainer, saver)
    trainer.restore(checkpoint)
    before = checkpoint.state if checkpoint else TrainingState(total_steps=state.total_steps)
    for name in ("step", "images", "skipped", "skipped_in_a_row", "rolled_back_at"):
        setattr(state, name, getattr(before, name))
    watch.forget_after(state.step)
    watch.event(
        f"memory ran out while the weights were being changed in step {trainer.half_done_at + 1}; "
        f"what followed step {state.step} is done again"
    )
    trainer.batches = trainer.load()


def roll_back(trainer: Trainer, saver: Saver, watch: Watch) -> None:
    """Too many updates without a finite number: older weights once, then a diagnosis.

    The pictures that led there are not taken again, as Chowdhery et al. 2022 (PaLM, section
    5.1) did with the batches around a spike: the image count goes on from where it is.
    """
    state = trainer.state
    if state.rolled_back_at is not None and state.step - state.rolled_back_at < PEACE:
        reason = diagnose(
            trainer.model, trainer.update.loss, trainer.last_bad.to(trainer.device), trainer.dtype
        )
        raise LimnerError(
            f"{MOST_SKIPPED} updates in a row had a loss or gradient that is no finite number, "
            f"again after going back to a checkpoint at step {state.rolled_back_at}: {reason} "
            f"The last good checkpoint in {trainer.folder} is as it was."
        )
    checkpoint = last_good(trainer, saver)
    trainer.restore(checkpoint)
    state.rolled_back_at, state.skipped_in_a_row = state.step, 0
    where = checkpoint.folder.name if checkpoint else "its beginning"
    watch.event(
        f"{MOST_SKIPPED} updates in a row had a loss or gradient that is no finite number: the "
        f"weights are those of {where} again, and the pictures that led here are passed over"
    )
