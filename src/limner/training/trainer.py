"""The training loop, in sight: a batch of counts in, an update of the weights out.

`Trainer(config).train()` is the whole. What happens at a step depends on the configuration, the
weights, and the image count, and on nothing else, which is what makes a resumed run the same run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader

from limner import console
from limner import device as devices
from limner.checkpoint.folder import (
    Checkpoint,
    Contents,
    TrainingState,
    fit_weights,
    save_checkpoint,
)
from limner.checkpoint.lineage import FILE as LINEAGE
from limner.checkpoint.manifest import finish_interrupted
from limner.checkpoint.save_sharded import save_in_shards
from limner.checkpoint.saver import Saver
from limner.checkpoint.single_file import WeightsFile
from limner.config import Config
from limner.config.defaults import changed
from limner.config.notes import notes
from limner.data.dataset import Refused
from limner.data.examples import Batch, TrainingExamples
from limner.data.open import open_data, training_order, with_buckets
from limner.data.order import CountBatches
from limner.data.own_folder import keep_apart, keep_out_of_links
from limner.data.row_fingerprints import fingerprints_of
from limner.data.verify import check_share_refused
from limner.diffusion.objective import build_objective
from limner.distributed.accelerator import open_accelerator
from limner.distributed.fsdp import forget_notes, note_pieces, noted_pieces, shard_model
from limner.distributed.processes import any_process, done_by_one, others_may_end
from limner.errors import LimnerError
from limner.files.atomic import write_text_whole
from limner.files.output_folders import is_training_run
from limner.models.shape_log import log_shapes
from limner.models.text_to_image import TextToImage, build_model
from limner.pretrained.components import open_parts
from limner.pretrained.text_encoder import PretrainedText
from limner.text.tokenizer import CaptionTokenizer
from limner.training.batch_size import pictures_that_fit, settle_batch
from limner.training.budget import Budget
from limner.training.ema import Average
from limner.training.folder import check_run_folder, run_lock
from limner.training.init_from import lineage_of, open_origin, other_meaning, start_from, words_of
from limner.training.inputs import Inputs, open_inputs
from limner.training.lora import adapters_of, add_adapters, check_installed, load_checkpoint, merged
from limner.training.lr_schedule import ema_decay, fallen, learning_rate_share
from limner.training.monitor.monitor import Watch
from limner.training.monitor.run_log import list_refused
from limner.training.monitor.trackers import check_trackers
from limner.training.optimizer import build_optimizers
from limner.training.recovery import MOST_SKIPPED, repeat, restore_newest, roll_back
from limner.training.resume import check_rows, find_resume
from limner.training.stopping import (
    StopOnSignal,
    Stopped,
    leave_signals_to_the_main_process,
    quiet_about_workers,
)
from limner.training.train_step import HalfDone, ShortOfMemory, Update, Updated, stateful

MOST_WORKER_DEATHS = 5

log = logging.getLogger("limner")


class Trainer:
    """A run: data, model, optimizers, and where it stands.

    Args:
        config: from `load_config`.
        resume: a checkpoint folder, "latest" for the newest in `training.output_dir`, "auto" for
            that if it is of the same run, or "no"; None: what `training.resume` says.

    Raises:
        LimnerError: for bad data, a missing or foreign checkpoint, or settings that need parts
            which are not there.
    """

    batches: Iterator[Batch]
    half_done_at: int | None = None
    rows: np.ndarray | None = None  # in the main process: see limner.data.row_fingerprints

    def __init__(self, config: Config, resume: str | Path | None = None) -> None:
        check_installed(config)
        check_trackers(config)
        self.parts = open_parts(config)
        self.accelerator = open_accelerator(config)
        config = self.parts.config
        self.folder = Path(config.training.output_dir)
        self.lock = run_lock(self.folder)
        weakref.finalize(self, self.lock.release)
        try:
            done_by_one(self.accelerator.is_main_process, self.take_folder)
            self.begin(config, resume)
        except BaseException:
            self.lock.release()
            raise

    def take_folder(self) -> None:
        """Nobody else writes into the run's folder from here on, and it is in order."""
        if not is_training_run(self.folder):
            keep_apart(self.folder, self.parts.config, "training.output_dir")
        check_run_folder(self.folder)
        self.lock.acquire()
        finish_interrupted(self.folder)

    def begin(self, config: Config, resume: str | Path | None) -> None:
        """Everything as it is at the step from which this run goes on."""
        checkpoint, self.news = find_resume(resume, config)
        self.config = config = self.settled(config, checkpoint)
        self.device = self.accelerator.device
        devices.keep_freed_memory()
        precision = config.training.mixed_precision
        self.dtype = devices.choose_precision(precision, self.device)
        self.news += notes(config)
        if note := devices.precision_note(precision, self.device, "training.mixed_precision"):
            self.news.append(note)
        self.objective = build_objective(config)
        self.data = open_data(config, self.say, self.parts.unit)
        if not is_training_run(self.folder):
            keep_out_of_links(self.folder, self.data.set, "training.output_dir")
        self.config = config = with_buckets(config, self.data)
        self.news += self.data.said
        if self.accelerator.is_main_process:  # before their number may end the run
            list_refused(self.folder, self.data.set.refused)
        check_share_refused(len(self.data.set.refused), len(self.data.set.rows), config)
        auto = (config.training.resume if resume is None else resume) == "auto"
        done_by_one(self.accelerator.is_main_process, lambda: self.look_at_rows(checkpoint, auto))
        origin = None if checkpoint else open_origin(config)
        self.lineage = lineage_of(config, origin, checkpoint)
        self.tokenizer = (
            checkpoint.tokenizer if checkpoint else words_of(origin, config) or self.learn_words()
        )
        self.state = checkpoint.state if checkpoint else TrainingState()

        reader = self.parts.reader or self.tokenizer
        assert reader is not None
        self.reader: PretrainedText | CaptionTokenizer = reader
        self.sharded = config.training.sharding != "none" and self.accelerator.num_processes > 1
        self.model, said = self.first_model(origin)
        self.news += said
        self.average = Average(self.model)
        self.averaged = self.average.model
        if self.sharded:
            shard_model(self.model, self.device, self.dtype)
            self.average.shard(self.model, self.accelerator.is_main_process)
            self.recall_pieces()
        self.update = Update(
            self.model,
            self.objective,
            build_optimizers(self.model, config),
            torch.amp.GradScaler(self.device.type) if self.dtype == torch.float16 else None,
            config,
            self.state,
            self.device,
            self.dtype,
        )
        if checkpoint:
            wanted = str(config.training.resume if resume is None else resume)
            named = wanted not in ("auto", "latest")
            self.news += restore_newest(self, checkpoint, named)

    def look_at_rows(self, checkpoint: Checkpoint | None, auto: bool) -> None:
        """Which rows are trained, as checkpoints write it down, and whether they changed."""
        self.rows = fingerprints_of(self.data.set, self.data.trained.rows)
        if checkpoint:
            self.news += check_rows(checkpoint, self.rows, auto)

    @functools.cached_property
    def inputs(self) -> Inputs:
        """Pictures or latents, words or states; those of pretrained parts are computed when first
        asked for, and kept (see `limner.training.inputs`)."""
        return open_inputs(
            self.config,
            self.data,
            self.parts,
            self.tokenizer,
            self.device,
            self.dtype,
            self.say,
        )

    def say(self, text: str) -> None:
        """Print it once, however many processes there are."""
        if self.accelerator.is_main_process:
            console.say(text)

    def train(self) -> TrainingState:
        """Run to the end; checkpoints, previews, and logs appear in the run's folder.

        Raises:
            Stopped: SIGINT, SIGTERM, or SIGHUP came; the run is saved and can go on.
            LimnerError: the run cannot go on, for the reason it gives.
        """
        if self.accelerator.is_main_process:
            self.lock.acquire()  # again, where this is not the first call
        try:
            return self.run()
        finally:
            self.lock.release()

    def run(self) -> TrainingState:
        """The loop, in a folder that is held. Raises as `train` does."""
        settings, state = self.config.training, self.state
        inputs = self.inputs  # made before the clock of the run starts
        budget = Budget(self.config, state, self.accelerator, len(inputs.trained.rows))
        with (
            others_may_end(),
            StopOnSignal() as stop,
            self.watch(budget) as watch,
            self.saver(watch) as saver,
            self.loading(),
        ):
            if self.accelerator.is_main_process:
                write_text_whole(self.folder / LINEAGE, self.lineage.to_json())
            self.compile(watch)
            due = False
            while not budget.finished():
                start = time.perf_counter()
                learning_rate = self.set_learning_rate()
                try:
                    updated, refused = self.step(watch.event)
                except HalfDone:
                    repeat(self, saver, watch)
                    continue
                if not updated.skipped:
                    self.update_average(budget.images_per_step)
                budget.step_done(time.perf_counter() - start)

                watch.refused(refused)
                watch.step_done(updated, learning_rate)
                saver.poll()
                if state.skipped_in_a_row == MOST_SKIPPED:
                    roll_back(self, saver, watch)
                stopping = any_process(stop.name is not None)
                due = due or budget.checkpoint_due()
                # Only the main process knows which is the best.
                due = any_process(due or (settings.keep_best and watch.best_step() == state.step))
                # While updates are left out older checkpoints are what helps: none is pruned.
                if (due and not state.skipped_in_a_row) or budget.finished() or stopping:
                    self.save_numbered(saver)
                    due = False
                if stopping:
                    break
            saver.wait()
            if saver.failed:
                raise LimnerError(f"{saver.failed}. Make room, and run the same command again.")
            if not budget.finished():
                raise Stopped(
                    f"stopped by {stop.name or 'a signal'} after step {state.step}, which is saved "
                    f"in {self.folder}; the same command goes on from there"
                )
            watch.count_jumps()
            watch.point_to_the_best()
            watch.write_speed()
        return state

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return self.update.optimizers

    def watch(self, budget: Budget) -> Watch:
        return Watch(
            self.config,
            self.data,
            self.inputs,
            self.parts,
            self.reader,
            self.objective,
            self.average,
            self.dtype,
            self.accelerator,
            budget,
            self.news,
        )

    def compile(self, watch: Watch) -> None:
        """Compile each kind of block once, whose instances share the code, and the last layer."""
        if log.isEnabledFor(logging.DEBUG):
            log_shapes(self.model)  # compiled code has no place for its hooks
            return
        if not self.config.training.compile_model:
            return
        if reason := devices.why_not_compile(self.device):
            watch.event(f"torch.compile is off, the run is slower for it: {reason}")
            return
        if self.config.data.buckets:
            devices.allow_shapes(len(self.config.data.buckets))
        for part in (self.model.denoiser, self.model.text_encoder):
            for block in getattr(part, "blocks", []):
                if self.sharded:  # bringing the weights together stays outside
                    block.forward = torch.compile(block.forward)
                else:
                    block.compile()
        self.model.denoiser.final_layer.compile()

    def set_learning_rate(self) -> float:
        state = self.state
        peak = self.config.training.learning_rate
        assert peak is not None, "load_config resolves it"
        place = self.config.lr_scheduler, state.step, state.total_steps, state.decay_start
        self.update.moved = fallen(*place)
        rate = peak * learning_rate_share(*place)
        for optimizer in self.update.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("rate_share", 1.0)
        return rate

    def step(self, say: Callable[[str], None] = console.say) -> tuple[Updated, list[Refused]]:
        """One update of the weights, and the rows that were refused on the way to it."""
        batches = self.next_batches(say)
        try:
            updated = self.update(batches, say)
        except ShortOfMemory:
            process, size = self.accelerator.process_index, self.config.training.micro_batch_size
            note_pieces(self.folder, process, size, self.state.pieces)
            raise
        if updated.skipped:
            self.last_bad = batches[0]
        return updated, [row for batch in batches for row in batch.refused]

    def update_average(self, images_per_step: int) -> None:
        settings = self.config.training
        decay = 0.0
        if settings.use_ema:
            images = self.state.images + images_per_step
            decay = ema_decay(images, images_per_step, settings.ema_decay, settings.ema_ramp)
        self.average.follow(self.model, decay)

    def restore(self, checkpoint: Checkpoint | None) -> None:
        """Weights, their average, and the optimizers from a checkpoint, or as at the start."""
        if checkpoint:
            if self.config.lora.rank is not None:
                load_checkpoint(checkpoint, self.model, self.averaged)
            else:
                checkpoint.load_weights(self.model, averaged=False)
                checkpoint.load_weights(self.average, averaged=True)
            checkpoint.load_optimizers(stateful(self.update))
            return
        fresh = self.first_model(open_origin(self.config))[0].state_dict()
        for weights in (self.model, self.average):
            fit_weights(weights, fresh, self.folder)
        self.update.balance.reset()
        for optimizer in self.update.optimizers.values():
            optimizer.state.clear()

    def saver(self, watch: Watch) -> Saver:
        settings = self.config.training
        limit, stop = settings.checkpoints_total_limit, settings.save_errors == "stop"
        best = watch.best_step if settings.keep_best else lambda: None
        return Saver(limit, best, stop, watch.event)

    def save_numbered(self, saver: Saver) -> None:
        folder = self.folder / f"checkpoint-{self.state.step}"
        if main := self.accelerator.is_main_process:
            forget_notes(self.folder)
        if self.sharded and self.config.training.checkpoint_shards:
            saver.failed = None
            place = self.accelerator.process_index, self.accelerator.num_processes
            if reason := save_in_shards(folder, self.parts_of_contents(), *place):
                saver.not_written(folder, reason)
            elif main:
                saver.prune(self.folder)
            return
        contents = self.contents()
        if main:
            saver.save(folder, contents)

    def save_checkpoint(self, folder: str | Path) -> Path:
        """Write everything needed to draw, resume, or share to a folder, whole or not at all."""
        path, contents = Path(folder), self.contents()
        if self.accelerator.is_main_process:
            save_checkpoint(path, contents)
        self.accelerator.wait_for_everyone()
        return path

    def contents(self) -> Contents:
        """What a checkpoint of now holds. Every process of a sharded run gives its part."""
        contents = self.parts_of_contents()
        return contents.whole(self.accelerator.is_main_process) if self.sharded else contents

    def parts_of_contents(self) -> Contents:
        """The same, as this process has it."""
        averaged = self.average if self.config.training.use_ema else None
        parts = self.model, averaged, stateful(self.update)
        contents = Contents.of(*parts, self.tokenizer, self.config, self.state)
        contents = dataclasses.replace(contents, rows=self.rows, lineage=self.lineage)
        if self.config.lora.rank is None:
            return contents
        return dataclasses.replace(
            contents,
            model=merged(self.model),
            averaged=merged(averaged.model) if averaged else None,
            adapters=adapters_of(self.model, averaged.model if averaged else None),
        )

    # Small parts

    def settled(self, config: Config, checkpoint: Checkpoint | None) -> Config:
        """The configuration with its batch as numbers: the checkpoint's, if `auto` found them."""
        earlier = checkpoint.config.training if checkpoint else None

        def fits(config: Config) -> int:
            if earlier:
                return earlier.micro_batch_size
            found = [pictures_that_fit(config) if self.accelerator.is_main_process else 0]
            several = self.accelerator.num_processes > 1
            return (broadcast_object_list(found) if several else found)[0]

        processes = self.accelerator.num_processes
        auto = config.training.batch_size == "auto"
        config = settle_batch(config, processes, fits)
        if auto:
            size = config.training.micro_batch_size
            self.news.append(f"training.batch_size: {size} pictures at a time, as auto chose")
        if checkpoint and config.data.buckets == "auto":
            config = changed(
                config, data=changed(config.data, buckets=checkpoint.config.data.buckets)
            )
        if checkpoint and (state := checkpoint.state).step:
            if config.training.batch_size != checkpoint.config.training.batch_size:
                state.pieces = 1
            size = config.training.micro_batch_size * processes
            now = size * config.training.gradient_accumulation_steps
            before = checkpoint.pictures_per_update()
            if before != now:
                self.news.append(
                    f"an update takes {now} pictures from here on, and took {before} before: it is "
                    "no longer the same run (training.effective_batch_size keeps it)"
                )
        return config

    def learn_words(self) -> CaptionTokenizer | None:
        """The built-in tokenizer, from the trained captions."""
        text = self.config.text_encoder
        if self.parts.reader is not None:
            return None
        assert text.max_length
        captions = (c for row in self.data.trained.rows for c in row.captions)
        return CaptionTokenizer.learn(captions, text.vocab_size, text.max_length)

    def fresh_model(self) -> TextToImage:
        """A function of the seed: every process of a run builds the same."""
        torch.manual_seed(self.config.training.seed)
        model = build_model(self.config, self.reader.text_size)
        return model if self.sharded else model.to(self.device)

    def recall_pieces(self) -> None:
        """Take micro-batches in as many parts as an earlier start found that they must be."""
        noted = [noted_pieces(self.folder, self.config.training.micro_batch_size)]
        self.state.pieces = max(self.state.pieces, broadcast_object_list(noted)[0])

    def first_model(self, origin: Checkpoint | WeightsFile | None) -> tuple[TextToImage, list[str]]:
        """As it is before its first update, and what is to be said about it."""
        model = self.fresh_model()
        said = other_meaning(origin, self.config)
        said += start_from(model, self.tokenizer, origin, self.config.lora.rank is not None)
        return model, said + add_adapters(model, self.config)

    def next_batches(self, say: Callable[[str], None] = console.say) -> list[Batch]:
        """The micro-batches of the next update; the same again if a worker dies over them."""
        for _ in range(MOST_WORKER_DEATHS):
            try:
                accumulation = self.config.training.gradient_accumulation_steps
                return [next(self.batches) for _ in range(accumulation)]
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                reason = " ".join(str(error).split())[:200]
                say(f"a process that loads pictures died and is replaced ({reason})")
                self.batches = self.load()
        raise LimnerError(
            f"processes that load pictures died {MOST_WORKER_DEATHS} times in step "
            f"{self.state.step + 1} ({reason}); if memory is short set training.num_workers=0"
        )

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        self.batches = self.load()
        try:
            yield
        finally:
            self.batches = iter(())  # ends the workers

    def load(self) -> Iterator[Batch]:
        """The batches from here on, loaded ahead by the workers."""
        settings = self.config.training
        examples = TrainingExamples(
            self.inputs.trained,
            self.inputs.words,
            settings.seed,
            settings.caption_dropout,
            self.config.data.main_caption_share,
            self.config.data.horizontal_flip,
            training_order(
                self.data, self.config, self.accelerator.num_processes, self.state.images
            ),
            self.data.trained.buckets,
        )
        counts = CountBatches(
            self.state.images,
            settings.micro_batch_size,
            self.accelerator.num_processes,
            self.accelerator.process_index,
        )
        loader: DataLoader[Any] = DataLoader(
            examples,
            batch_sampler=counts,
            num_workers=settings.num_workers,
            prefetch_factor=settings.prefetch_factor if settings.num_workers else None,
            collate_fn=Batch.of,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=leave_signals_to_the_main_process,
        )
        with quiet_about_workers():
            return iter(loader)
