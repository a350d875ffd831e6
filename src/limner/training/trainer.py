"""The training loop, in sight: a batch of counts in, an update of the weights out.

`Trainer(config).train()` is the whole. What happens at a step depends on the configuration, the
weights, and the image count, and on nothing else, which is what makes a resumed run the same run.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils.data import DataLoader

from limner import device as devices
from limner.checkpoint import (
    Checkpoint,
    TrainingState,
    check_same_model,
    checkpoints,
    newest_checkpoint,
    save_checkpoint,
)
from limner.config import Config
from limner.data.examples import Batch, TrainingExamples
from limner.data.order import CountBatches, seeded_generator
from limner.data.rows import Refused
from limner.data.sources import open_data
from limner.debug import log_shapes
from limner.diffusion.objective import build_objective
from limner.errors import LimnerError
from limner.models.parts import open_parts
from limner.models.pretrained_text import PretrainedText
from limner.models.text_to_image import build_model
from limner.text.tokenizer import CaptionTokenizer
from limner.training.budget import Budget
from limner.training.inputs import Inputs, open_inputs
from limner.training.optimizer import build_optimizers
from limner.training.schedule import ema_decay, learning_rate_share
from limner.training.watch import Watch

log = logging.getLogger("limner")


class Trainer:
    """A run: data, model, optimizers, and where it stands.

    Args:
        config: from `load_config`.
        resume: a checkpoint folder, or "latest" for the newest in `training.output_dir`.

    Raises:
        LimnerError: for bad data, a missing or foreign checkpoint, or settings that need parts
            which are not there.
    """

    def __init__(self, config: Config, resume: str | Path | None = None) -> None:
        self.parts = open_parts(config)
        self.config = config = self.parts.config
        self.folder = Path(config.training.output_dir)
        self.accelerator = _accelerator(config)
        self.device = self.accelerator.device
        devices.keep_freed_memory()
        self.dtype = devices.choose_precision(config.training.mixed_precision, self.device)
        self.objective = build_objective(config)
        self.data = open_data(config)

        checkpoint = _find_resume(resume, self.folder)
        if checkpoint:
            check_same_model(checkpoint.config, config)
            self.tokenizer, self.state = checkpoint.tokenizer, checkpoint.state
        else:
            self.tokenizer, self.state = self.learn_words(), TrainingState()

        torch.manual_seed(config.training.seed)
        reader = self.parts.reader or self.tokenizer
        assert reader is not None
        self.reader: PretrainedText | CaptionTokenizer = reader
        model = build_model(config, reader.text_size).to(self.device)
        # Drawing and the held-out loss use this copy, which is never compiled: their batches have
        # other shapes, each of which would be compiled anew.
        self.averaged = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizers = build_optimizers(model, config)
        self.scaler = (
            torch.amp.GradScaler(self.device.type) if self.dtype == torch.float16 else None
        )
        if checkpoint:
            checkpoint.load_weights(model, averaged=False)
            checkpoint.load_weights(self.averaged, averaged=True)
            checkpoint.load_optimizers(self.stateful())
        self.bare_model = model
        self.model = self.accelerator.prepare_model(model)

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
            self.accelerator.print,
        )

    def train(self) -> TrainingState:
        """Run to the end; checkpoints, previews, and logs appear in the run's folder."""
        settings, state = self.config.training, self.state
        inputs = self.inputs  # made before the clock of the run starts
        budget = Budget(self.config, state, self.accelerator, len(inputs.trained.rows))
        with self.watch(budget) as watch:
            self.compile(watch)
            batches = self.batches()
            while not budget.finished():
                start = time.perf_counter()
                learning_rate = self.set_learning_rate()
                loss, norm, refused = self.step(batches)
                self.update_average(budget.images_per_step)
                budget.step_done(time.perf_counter() - start)

                watch.refused(refused)
                watch.step_done(loss, norm, learning_rate)
                if state.step % settings.save_steps == 0 or budget.finished():
                    self.save_numbered()
            watch.write_speed()
        return state

    def watch(self, budget: Budget) -> Watch:
        return Watch(
            self.config,
            self.data.set,
            self.inputs,
            self.parts,
            self.reader,
            self.objective,
            self.averaged,
            self.dtype,
            self.accelerator,
            budget,
        )

    def compile(self, watch: Watch) -> None:
        """Compile each kind of block once; its instances share the code."""
        if log.isEnabledFor(logging.DEBUG):
            log_shapes(self.bare_model)  # compiled code has no place for its hooks
            return
        if not self.config.training.compile_model:
            return
        if reason := devices.why_not_compile(self.device):
            watch.event(f"torch.compile is off, the run is slower for it: {reason}")
            return
        for part in (self.bare_model.denoiser, self.bare_model.text_encoder):
            for block in getattr(part, "blocks", []):
                block.compile()

    def set_learning_rate(self) -> float:
        state = self.state
        rate = self.config.training.learning_rate * learning_rate_share(
            self.config.lr_scheduler, state.step, state.total_steps, state.decay_start
        )
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate
        return rate

    def step(self, batches: Iterator[Batch]) -> tuple[Tensor, Tensor, list[Refused]]:
        """One update of the weights.

        Returns:
            The mean loss and the gradient's norm, not waited for, and rows that were refused.
        """
        self.model.train()
        total, refused = torch.zeros((), device=self.device), list[Refused]()
        accumulation = self.config.training.gradient_accumulation_steps
        for micro in range(accumulation):
            batch = next(batches).to(self.device)
            refused += batch.refused
            self.seed_dropout(micro)
            last = micro == accumulation - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self.loss(batch) / accumulation
                (self.scaler.scale(loss) if self.scaler else loss).backward()
            total += loss.detach()
        if self.scaler:
            for optimizer in self.optimizers.values():
                self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.config.training.max_grad_norm
        )
        for optimizer in self.optimizers.values():
            self.scaler.step(optimizer) if self.scaler else optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.scaler:
            self.scaler.update()
        return total, norm, refused

    def loss(self, batch: Batch) -> Tensor:
        """From a picture (or its latents) to its loss: noised at its time, predicted, compared."""
        timesteps = self.objective.path.training_timesteps(batch.u)
        x_t = self.objective.add_noise(batch.picture, batch.noise, timesteps)
        with self.autocast():
            output = self.model(x_t, timesteps, batch.text)
        return self.objective.loss(output, batch.picture, batch.noise, timesteps).mean()

    @torch.no_grad()
    def update_average(self, images_per_step: int) -> None:
        settings = self.config.training
        decay = 0.0
        if settings.use_ema:
            images = self.state.images + images_per_step
            decay = ema_decay(images, images_per_step, settings.ema_decay, settings.ema_ramp)
        averaged = [p.detach() for p in self.averaged.parameters()]
        torch._foreach_lerp_(
            averaged, [p.detach() for p in self.bare_model.parameters()], 1 - decay
        )

    def save_numbered(self) -> None:
        self.save_checkpoint(self.folder / f"checkpoint-{self.state.step}")
        limit = self.config.training.checkpoints_total_limit
        if self.accelerator.is_main_process and limit:
            for old in checkpoints(self.folder)[:-limit]:
                shutil.rmtree(old)

    def save_checkpoint(self, folder: str | Path) -> Path:
        """Write everything needed to draw, resume, or share to a folder, whole or not at all."""
        path = Path(folder)
        if self.accelerator.is_main_process:
            averaged = self.averaged if self.config.training.use_ema else None
            save_checkpoint(
                path,
                self.bare_model,
                averaged,
                self.stateful(),
                self.tokenizer,
                self.config,
                self.state,
            )
        self.accelerator.wait_for_everyone()
        return path

    # Small parts

    def learn_words(self) -> CaptionTokenizer | None:
        """The built-in tokenizer, from the trained captions."""
        text = self.config.text_encoder
        if self.parts.reader is not None:
            return None
        assert text.max_length
        captions = (c for row in self.data.trained.rows for c in row.captions)
        return CaptionTokenizer.learn(captions, text.vocab_size, text.max_length)

    def stateful(self) -> dict[str, Any]:
        """What remembers something from update to update, besides the weights."""
        return {**self.optimizers, **({"scaler": self.scaler} if self.scaler else {})}

    def seed_dropout(self, micro: int) -> None:
        """The masks, too, are a function of the image count; no stream is used twice."""
        if self.config.model.dropout:
            rank = self.accelerator.process_index
            names = ("dropout", self.state.images, micro, rank)
            torch.manual_seed(seeded_generator(self.config.training.seed, *names).initial_seed())

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def batches(self) -> Iterator[Batch]:
        """The batches from here on, loaded ahead by the workers."""
        settings = self.config.training
        examples = TrainingExamples(
            self.inputs.trained,
            self.inputs.words,
            settings.seed,
            settings.caption_dropout,
            self.config.data.main_caption_share,
            self.config.data.horizontal_flip,
        )
        counts = CountBatches(
            self.state.images,
            settings.batch_size,
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
        )
        return iter(loader)


def _accelerator(config: Config) -> Accelerator:
    # Accelerate keeps one state per program and refuses another device; a notebook that trains
    # first on the GPU and then on the processor is nothing to refuse.
    if AcceleratorState._shared_state:
        AcceleratorState._reset_state(reset_partial_state=True)
    device = devices.choose_device(config.training.device)
    trackers = [t for t in config.training.trackers if t != "none"]
    return Accelerator(
        cpu=device.type == "cpu",
        log_with=trackers or None,
        project_dir=config.training.output_dir,
    )


def _find_resume(resume: str | Path | None, folder: Path) -> Checkpoint | None:
    if resume is None:
        if earlier := checkpoints(folder):
            # Two runs in one folder: the newest checkpoint would be whichever went on for longer.
            raise LimnerError(
                f"{earlier[-1]} is of an earlier run: go on from it with --resume latest, or give "
                "this run another training.output_dir"
            )
        return None
    return Checkpoint.open(newest_checkpoint(folder) if str(resume) == "latest" else resume)
