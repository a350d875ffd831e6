"""The training loop.

`Trainer(config).train()` is all there is to it. What happens at a step depends only on the
configuration, the weights, and the image count, so a resumed run is the same run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from limner.checkpoint.lineage import FILE as LINEAGE
from limner.checkpoint.saver import Saver
from limner.checkpoint.state import TrainingState
from limner.config import Config
from limner.data.examples import Batch
from limner.data.open import Data
from limner.distributed.fsdp import note_pieces
from limner.distributed.processes import any_process, done_by_one, others_may_end
from limner.errors import LimnerError
from limner.files.atomic import write_text_whole
from limner.models.text_to_image import TextToImage
from limner.training.batches import Batches
from limner.training.budget import Budget
from limner.training.compiling import (
    compile_model,
    end_compilers,
    end_running_compilers,
    is_of_the_compiler,
)
from limner.training.folder import set_aside_later
from limner.training.monitor.monitor import RunMonitor
from limner.training.open_run import open_run
from limner.training.recovery import MOST_SKIPPED, Recovery
from limner.training.saving import save_numbered, save_to
from limner.training.stopping import StopOnSignal, Stopped
from limner.training.train_step import PartialOptimizerStep, ShortOfMemory, StepResult


class Trainer:
    """Trains a model: a run and its training loop.

    Args:
        config: the configuration, from `load_config`.
        resume: a checkpoint folder, "latest" (the newest in `training.output_dir`), "auto" (the
            newest if it belongs to the same run), or "no". None: use `training.resume`.

    Attributes:
        run: the state of the run (see `limner.training.run`), which the properties read.

    Raises:
        LimnerError: invalid data, a checkpoint that is missing or of another run, or settings that
            need a missing component.
    """

    def __init__(self, config: Config, resume: str | Path | None = None) -> None:
        self.run = open_run(config, resume)
        self.batches = Batches(self.run)

    def train(self) -> TrainingState:
        """Train until the end of the run. Checkpoints, previews, and logs are written to the run
        folder.

        Raises:
            Stopped: SIGINT, SIGTERM, or SIGHUP was received; the run is saved and can be resumed.
            LimnerError: the run cannot continue; the message says why.
        """
        if self.run.is_main:
            self.run.lock.acquire()  # again, if this is not the first call
        try:
            with self.run.events.listening():
                return self._train()
        finally:
            self.run.lock.release()

    def _train(self) -> TrainingState:
        run, state, settings = self.run, self.run.state, self.run.config.training
        done_by_one(run.is_main, lambda: set_aside_later(run.folder, state.step))
        inputs = run.inputs  # made before the clock of the run starts
        budget = Budget(run.config, state, run.accelerator, len(inputs.trained.rows))
        with (
            others_may_end(),
            StopOnSignal() as stop,
            RunMonitor(run, budget) as monitor,
            self.saver(monitor) as saver,
            self.batches,
        ):
            if run.is_main:
                write_text_whole(run.folder / LINEAGE, run.lineage.to_json())
            with self.stopping_at_once(stop):
                compile_model(run)
            recovery = Recovery(run, self.batches, saver, monitor)
            due = False
            while not budget.finished():
                start = time.perf_counter()
                learning_rate = run.set_learning_rate()
                first = not budget.step_seconds
                try:
                    with self.stopping_at_once(stop) if first else contextlib.nullcontext():
                        updated, batches = self.step()
                except PartialOptimizerStep:
                    recovery.repeat()
                    continue
                except Exception as error:
                    if stop.name is None or stop.launched or not is_of_the_compiler(error):
                        raise
                    self.save_what_was_made(saver)
                    break
                if not updated.skipped:
                    run.update_ema()
                budget.step_done(time.perf_counter() - start)
                if run.is_main:
                    run.lock.check()

                monitor.refused(row for batch in batches for row in batch.refused)
                monitor.step_done(updated, learning_rate)
                saver.poll()
                if state.skipped_in_a_row == MOST_SKIPPED:
                    recovery.roll_back(batches[0])
                stopping = any_process(stop.name is not None)
                due = due or budget.checkpoint_due()
                # Only the main process knows which is the best.
                best = settings.keep_best and monitor.best_step() == state.step
                due = any_process(due or best)
                # While updates are skipped, older checkpoints are needed: none is pruned.
                if (due and not state.skipped_in_a_row) or budget.finished() or stopping:
                    save_numbered(run, saver)
                    due = False
                if stopping:
                    break
            saver.wait()
            if saver.failed:
                raise LimnerError(
                    f"{saver.failed}. Free some disk space and run the same command again."
                )
            if not budget.finished():
                raise Stopped(
                    f"stopped by {stop.name or 'a signal'} after step {state.step}; saved in "
                    f"{run.folder}. Run the same command to resume"
                )
            monitor.finish()
        return state

    @contextlib.contextmanager
    def stopping_at_once(self, stop: StopOnSignal) -> Iterator[None]:
        """Before the first step of this process is counted: a signal stops the run without waiting
        for the compiler. Whatever was begun is made again by the same command."""
        try:
            with stop.at_once(end_running_compilers):
                yield
        except KeyboardInterrupt:
            if stop.name is None:
                raise
            end_compilers()
            self.run.train_step.forget_gradients()
            step = self.run.state.step
            raise Stopped(
                f"stopped by {stop.name} before the first step, so there is nothing to save. Run "
                f"the same command to {f'resume at step {step}' if step else 'begin again'}"
            ) from None

    def save_what_was_made(self, saver: Saver) -> None:
        """Save the state before a step that could not be made."""
        self.run.train_step.forget_gradients()
        saver.wait()
        step = self.run.state.step
        if step and not (self.run.folder / f"checkpoint-{step}").is_dir():
            save_numbered(self.run, saver)

    def step(self) -> tuple[StepResult, list[Batch]]:
        """Perform one update of the weights; returns its result and its micro-batches."""
        run = self.run
        batches = self.batches.of_next_update()
        try:
            return run.train_step(batches, run.decay_progress), batches
        except ShortOfMemory:
            process, size = run.accelerator.process_index, run.config.training.micro_batch_size
            note_pieces(run.folder, process, size, run.state.pieces)
            raise

    def save_checkpoint(self, folder: str | Path) -> Path:
        """Save a checkpoint for sampling, resuming, or sharing to a folder, atomically."""
        save_to(self.run, Path(folder))
        return Path(folder)

    def saver(self, monitor: RunMonitor) -> Saver:
        settings = self.run.config.training
        limit, stop = settings.checkpoints_total_limit, settings.save_errors == "stop"
        best = monitor.best_step if settings.keep_best else lambda: None
        return Saver(limit, best, stop)

    @property
    def config(self) -> Config:
        """The resolved configuration."""
        return self.run.config

    @property
    def folder(self) -> Path:
        return self.run.folder

    @property
    def data(self) -> Data:
        return self.run.data

    @property
    def model(self) -> TextToImage:
        return self.run.model

    @property
    def averaged(self) -> TextToImage:
        """The EMA model, for sampling."""
        return self.run.averaged

    @property
    def state(self) -> TrainingState:
        return self.run.state
