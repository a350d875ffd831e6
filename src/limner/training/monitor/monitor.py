"""Monitor a run: progress, log, held-out loss, previews, trackers."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import torch

from limner import device as devices
from limner import memory
from limner.config.defaults import noise_floor
from limner.data.dataset import Refused
from limner.data.verify import check_share_refused
from limner.messages import parameters_in_words, plural
from limner.metrics.memorisation import COPIES, FEW
from limner.models.size import count_parameters
from limner.redaction import places_of
from limner.text.caption_lengths import lengths_of
from limner.training.budget import COMPILING, Budget
from limner.training.distillation.heldout import STEPS, TeacherDrawings
from limner.training.folder import write_config
from limner.training.monitor import throughput
from limner.training.monitor.heldout import FixedGrid, loss_by_level, mean
from limner.training.monitor.learning_curve import Spikes, advise, best_of, measurements
from limner.training.monitor.machine_share import MachineShare, Shared
from limner.training.monitor.memorisation_check import copying
from limner.training.monitor.previews import preview_prompts, preview_sizes, save_preview
from limner.training.monitor.progress import Progress
from limner.training.monitor.run_log import RunLog, read_log
from limner.training.monitor.step_averages import StepAverages
from limner.training.run import Run
from limner.training.saving import disk_in_words
from limner.training.train_step import StepResult

log = logging.getLogger(__name__)


class RunMonitor:
    """Context manager around the training loop. Evaluates the EMA weights; changes nothing.

    Only the main process prints, draws, or writes.
    """

    def __init__(self, run: Run, budget: Budget) -> None:
        self.run, self.budget = run, budget
        config, accelerator = run.config, run.accelerator
        self.config, self.data, self.set, self.inputs = config, run.data, run.data.set, run.inputs
        self.autoencoder, self.reader = run.parts.autoencoder, run.reader
        self.objective, self.ema, self.dtype = run.objective, run.ema, run.dtype
        self.averaged = run.averaged
        self.accelerator, self.state = accelerator, run.state
        self.main = run.is_main
        self.folder = run.folder
        places = places_of(config.model_dump())
        self.log = RunLog(self.folder, accelerator, self.state.step, places)
        self.progress = Progress(enabled=self.main)
        # Rows that proved unusable after the set was opened, starting with those that could not be
        # encoded.
        self.bad = {row.key for row in self.set.refused[self.data.refused :]}
        self.heldout_loss: float | None = None
        self.verdict = ""
        self.averages = StepAverages()
        events = read_log(self.log.path)
        self.best = best_of(measurements(events))
        self.spikes = _spikes_of(events)
        alone = accelerator.num_processes == 1 and accelerator.device.type == "cpu"
        self.machine = MachineShare() if alone else None
        self.shared: Shared | None = None
        self.said_shared = False

    def __enter__(self) -> RunMonitor:
        if self.main:
            write_config(self.folder, self.config)
            self.log.start_trackers(self.config, self.state.step)
        self.progress.__enter__()
        self.hello()
        if self.main:
            inputs, count = self.inputs, self.config.training.heldout_pictures
            self.grids: dict[str, FixedGrid | TeacherDrawings | None] = {}
            if inputs.trajectories:
                trained_drawings, held_out_drawings = inputs.trajectories
                for prefix, drawn in (("", held_out_drawings), ("train_", trained_drawings)):
                    self.grids[prefix], refused = TeacherDrawings.of(drawn, inputs.words, count)
                    self.refused(refused)
            else:
                for prefix, images in (("", inputs.held_out), ("train_", inputs.trained)):
                    self.grids[prefix], refused = FixedGrid.of(images, inputs.words, count)
                    self.refused(refused)
            trained, held_out = inputs.trained.rows, inputs.held_out.rows
            self.prompts = preview_prompts(self.config, trained, held_out)
            self.sizes = preview_sizes(self.config, self.data.trained, self.data.held_out)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.__exit__(kind, error, trace)
        # Not end_training, which also closes the process group: save_checkpoint needs it later.
        self.log.finish()

    def hello(self) -> None:
        self.run.events.write = self.write_event
        size = parameters_in_words(count_parameters(self.averaged))
        precision = str(self.dtype).removeprefix("torch.")
        log.info(
            f"{size} parameters on {devices.describe(self.accelerator.device)} in "
            f"{precision}; {len(self.inputs.trained.rows):,} pictures for training, "
            f"{len(self.inputs.held_out.rows):,} held out"
        )
        trained, held_out = self.data.trained.buckets, self.data.held_out.buckets
        if trained and held_out:
            counts = zip(trained.sizes, trained.counts(), held_out.counts(), strict=True)
            sizes = [{"height": h, "width": w, "trained": a, "held_out": b}
                     for (h, w), a, b in counts]  # fmt: skip
            self.log.write("buckets", self.state.step, sizes=sizes)
        self.write_plan()
        self.run.events.write_waiting()
        if self.state.pieces > 1:
            log.info(f"each micro-batch is split into {self.state.pieces} parts")
        if self.state.step:
            log.info(f"resumed at step {self.state.step}, {self.state.images:,} pictures seen")
        if new := self.log.refuse(self.set.refused):
            count, reason = len(new), new[0].reason
            first = reason if reason.startswith(new[0].key) else f"{new[0].key}: {reason}"
            log.info(
                f"{count} {plural(count, 'row')} cannot be used (see refused.jsonl), first: {first}"
            )
        self.check_refused()
        if sentence := lengths_of(self.inputs.trained.rows, self.reader).in_words():
            log.info(sentence)
        if self.main:
            log.info(disk_in_words(self.run))

    def write_plan(self) -> None:
        """Write how long the run is to be, for those who watch it; again only where it changed."""
        plan = {
            "parameters": count_parameters(self.averaged),
            "training_images": len(self.inputs.trained.rows),
            "held_out_images": len(self.inputs.held_out.rows),
            "images_per_step": self.budget.images_per_step,
            "max_steps": self.budget.most_steps,
            "max_seconds": self.budget.seconds,
            "device": devices.describe(self.accelerator.device),
        }
        before = [line for line in read_log(self.log.path) if line["kind"] == "plan"]
        if not before or {**before[-1], **plan} != before[-1]:
            self.log.write("plan", self.state.step, **plan)

    def write_event(self, message: str) -> None:
        """Write what was logged to log.jsonl."""
        seconds = round(self.budget.elapsed(), 2)
        self.log.write("event", self.state.step, seconds=seconds, message=message)

    def refused(self, rows: Iterable[Refused]) -> None:
        for row in self.log.refuse(rows):
            log.info(f"skipped a picture: {row.reason}")
            self.bad.add(row.key)
            self.check_refused()

    def check_refused(self) -> None:
        """Raises LimnerError if too many of all rows, or of those in use, are unusable."""
        bad, early = len(self.bad), self.data.refused
        check_share_refused(early + bad, early + len(self.set.rows), self.config)
        used = len(self.data.trained.rows) + len(self.data.held_out.rows)
        check_share_refused(bad, used, self.config)

    def best_step(self) -> int | None:
        """The step of the lowest held-out loss so far."""
        return self.best.step if self.best else None

    def forget_after(self, step: int) -> None:
        """Remove log entries after this step, to which the run was rolled back."""
        self.log.forget_after(step)
        events = read_log(self.log.path)
        self.best, self.spikes = best_of(measurements(events)), _spikes_of(events)
        self.averages.forget()

    def step_done(self, updated: StepResult, learning_rate: float) -> None:
        """Call after each update; writes what is due at this step."""
        self.averages.add(updated)
        if updated.skipped and self.state.skipped_in_a_row == 1:
            log.info(
                f"skipped the update at step {self.state.step}: loss {updated.loss:g}, gradient "
                f"norm {updated.norm:g} (training stops after too many of these in a row)"
            )
        settings, step, last = self.config.training, self.state.step, self.budget.finished()
        # Also where a checkpoint is due, so that a run resumed there averages over the same
        # updates.
        every = settings.logging_steps, settings.heldout_steps
        if last or self.budget.checkpoint_due() or any(step % steps == 0 for steps in every):
            self.write_losses(learning_rate)
        heldout = step % settings.heldout_steps == 0 or last
        preview = step % settings.preview_steps == 0 or last
        if heldout or preview:
            self.ema.collect()
        if not self.main:
            return
        if heldout:
            self.try_to(self.write_heldout, "the held-out loss was not measured")
        if preview:
            self.try_to(self.write_preview, "the preview was not drawn")

    def try_to(self, do: Callable[[], None], otherwise: str) -> None:
        """Run a monitoring task; if disk or memory is full, skip it instead of stopping the run."""
        reason = ""
        try:
            with self.ema.on(self.accelerator.device):
                do()
        except OSError as error:
            reason = str(error)
        except Exception as error:
            if not memory.is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:120] or type(error).__name__
        if reason:
            memory.give_back_freed_memory()
            log.info(f"{otherwise}: {reason}; training continues")

    def write_losses(self, learning_rate: float) -> None:
        state, budget = self.state, self.budget
        average = self.averages.take(self.accelerator)
        loss, norm = average.loss, average.norm
        speed = budget.images_per_second(average.updates)
        spike = self.spikes.see(loss, state.step)
        self.log.write(
            "train",
            state.step,
            images=state.images,
            seconds=round(state.seconds, 3),
            loss=loss if math.isfinite(loss) else None,  # JSON has no NaN and no infinity
            grad_norm=norm if math.isfinite(norm) else None,
            learning_rate=learning_rate,
            images_per_second=round(speed, 2),
            **({"skipped": average.skipped} if average.skipped else {}),
            **({"jumped": True} if self.spikes.jumped else {}),
        )
        if spike:
            log.info(spike)
        if self.machine is not None and len(budget.step_seconds) > COMPILING:
            self.shared = self.machine.look()
            if self.shared and not self.said_shared:
                self.said_shared = True
                log.info(self.shared.in_words())
        self.progress.update(
            state.step,
            budget.most_steps,
            state.images,
            speed,
            loss if math.isfinite(loss) else None,
            self.heldout_loss,
            budget.seconds_left(),
            self.shared.gets if self.shared else None,
            share=budget.share_done(),
        )

    def write_heldout(self) -> None:
        values: dict[str, Any] = {}
        batch_size = self.config.training.micro_batch_size
        for prefix, grid in self.grids.items():
            if grid is not None:
                measure = functools.partial(self.losses_of, grid)
                losses = memory.in_parts_that_fit(batch_size, measure)
                values |= {f"{prefix}loss": mean(losses), f"{prefix}loss_by_level": losses}
        self.heldout_loss = values.get("loss")
        state = self.state
        self.log.write(
            "heldout", state.step, images=state.images, seconds=round(state.seconds, 3), **values
        )
        measured = measurements(read_log(self.log.path))
        self.best = best_of(measured)
        # What it knows of is learning from images, by noise level.
        learns_images = not self.inputs.trajectories
        advice = advise(measured, noise_floor(self.config)) if learns_images else None
        verdict = advice.partition(":")[0] if advice else ""
        if advice and verdict != self.verdict:
            log.info(advice)
            if verdict == "memorising":
                self.try_to(self.look_for_copies, "skipped the search for copies")
        self.verdict = verdict

    def finish(self) -> None:
        """Report at the end of a run."""
        self.count_jumps()
        self.point_to_the_best()
        self.write_speed()

    def count_jumps(self) -> None:
        """At the end: report how often the loss jumped, if more than the once that was reported."""
        if self.spikes.count > 1:
            log.info(f"the loss jumped {self.spikes.count} times in total (`jumped` in log.jsonl)")

    def point_to_the_best(self) -> None:
        """At the end: recommend the best checkpoint if the last one is clearly worse."""
        last = self.heldout_loss
        if not self.main or not self.best or not last or last <= 1.02 * self.best.heldout:
            return
        best = self.folder / f"checkpoint-{self.best.step}"
        if best.is_dir():
            log.info(
                f"the held-out loss was lowest at step {self.best.step} ({self.best.heldout:.3g}; "
                f"{last:.3g} now): compare the pictures that limner generate draws from {best} and "
                "from the last checkpoint"
            )

    def look_for_copies(self) -> None:
        """Report how close samples of held-out captions are to trained pictures."""
        ratio = copying(
            self.averaged, self.objective, self.inputs, self.config.sampling, self.dtype
        )
        if ratio is None:
            return
        self.log.write("copies", self.state.step, ratio=round(ratio, 4))
        told = "they are copies" if ratio < COPIES else "they are not copies"
        if (count := len(self.inputs.held_out.rows)) < FEW:
            told = f"too few to tell, with {count} held out"
        log.info(
            f"drawings of held-out captions are {ratio:.2f} times as far from the nearest trained "
            f"picture as held-out pictures are: {told}"
        )

    def losses_of(self, grid: FixedGrid | TeacherDrawings, batch_size: int) -> dict[str, float]:
        device = self.accelerator.device
        if isinstance(grid, TeacherDrawings):
            return grid.loss_by_level(self.averaged, self.objective, batch_size, device, self.dtype)
        with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
            return loss_by_level(self.averaged, self.objective, grid, batch_size, device)

    def write_preview(self) -> None:
        path = self.folder / "previews" / f"step-{self.state.step:06d}.png"
        steps = STEPS if self.averaged.is_flow_map else (None,)
        save_preview(
            path,
            self.averaged,
            self.objective,
            self.inputs.words,
            self.autoencoder,
            self.prompts,
            self.config,
            self.dtype,
            self.sizes,
            steps,
        )
        self.log.preview(path, self.state.step)

    def write_speed(self) -> None:
        """At the end: report images/s and the share of this device's peak for matrix products."""
        if not self.main:
            return
        if not self.budget.step_seconds:
            log.info("nothing to do: this run has already used all its steps or minutes")
            return
        device = self.accelerator.device
        with self.ema.on(device):
            flops = throughput.flops_per_picture(self.run)
        speed = self.budget.images_per_second(len(self.budget.step_seconds))
        peak = throughput.matmul_peak(device, self.dtype)
        mfu = speed * flops / peak / self.accelerator.num_processes
        # A machine that other programs slow down during this one second shows no peak.
        hidden = mfu > 1
        precision = str(self.dtype).removeprefix("torch.")
        self.log.write(
            "speed",
            self.state.step,
            images_per_second=round(speed, 2),
            mfu=None if hidden else round(mfu, 4),
            matmul_peak_gflops=None if hidden else round(peak / 1e9, 1),
            training_gflops_per_picture=round(flops / 1e9, 3),
        )
        share = (
            "the machine was too busy to measure its peak"
            if hidden
            else f"{mfu:.0%} of the {peak / 1e9:,.0f} GFLOP/s of a {precision} matrix product on "
            "this machine"
        )
        log.info(f"{speed:.1f} images/s, {share}")


def _spikes_of(events: Iterable[dict[str, Any]]) -> Spikes:
    """The spike detector after these events of the log."""
    logged = [e["loss"] for e in events if e["kind"] == "train"]
    return Spikes([loss for loss in logged if loss is not None])
