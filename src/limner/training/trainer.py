"""The training loop, in sight: a batch of counts in, an update of the weights out.

`Trainer(config).train()` is the whole. What happens at a step depends on the configuration, the
weights, and the image count, and on nothing else, which is what makes a resumed run the same run.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.utils.data import DataLoader

from limner.config import Config
from limner.data.examples import Batch, TrainingExamples, warn_of_long_captions
from limner.data.order import CountBatches, seeded_generator
from limner.data.sources import open_data
from limner.errors import LimnerError
from limner.inference.sampling import build_objective
from limner.models.text_to_image import build_model
from limner.text.tokenizer import CaptionTokenizer
from limner.training import device as devices
from limner.training.checkpoint import (
    Checkpoint,
    TrainingState,
    check_same_model,
    checkpoints,
    save_checkpoint,
)
from limner.training.heldout import FixedGrid, loss_by_level, mean
from limner.training.optimizer import build_optimizers
from limner.training.previews import preview_prompts, save_preview
from limner.training.progress import Progress
from limner.training.runlog import RunLog
from limner.training.schedule import ema_decay, learning_rate_share

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
        _check_supported(config)
        self.config = config
        self.folder = Path(config.training.output_dir)
        self.accelerator = _accelerator(config)
        self.device = self.accelerator.device
        self.dtype = devices.choose_precision(config.training.mixed_precision, self.device)
        self.objective = build_objective(config)
        self.data = open_data(config)

        checkpoint = _find_resume(resume, self.folder)
        if checkpoint:
            check_same_model(checkpoint.config, config)
            self.tokenizer, self.state = checkpoint.tokenizer, checkpoint.state
        else:
            self.tokenizer = CaptionTokenizer.learn(
                (c for row in self.data.trained.rows for c in row.captions),
                config.text_encoder.vocab_size,
                config.text_encoder.max_length,
            )
            self.state = TrainingState()

        torch.manual_seed(config.training.seed)
        model = build_model(config, self.tokenizer.vocab_size).to(self.device)
        # Drawing and the held-out loss use this copy, which is never compiled: their batches have
        # other shapes, each of which would be compiled anew.
        self.averaged = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizers = build_optimizers(model, config)
        self.scaler = torch.amp.GradScaler(self.device.type) if self._fp16 else None
        if checkpoint:
            checkpoint.load_weights(model, averaged=False)
            checkpoint.load_weights(self.averaged, averaged=True)
            saved = checkpoint.optimizer_state()
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(saved[name])
        self.bare_model = model
        self.model = self.accelerator.prepare_model(model)

    def train(self) -> TrainingState:
        """Run to the end; checkpoints, previews, and logs appear in the run's folder."""
        settings, state = self.config.training, self.state
        self.begin = time.perf_counter() - state.seconds
        self.log = RunLog(self.folder, self.accelerator, state.step)
        self.main = self.accelerator.is_main_process
        if self.main:
            (self.folder / "config.yaml").write_text(self.config.to_yaml(), encoding="utf-8")
            self.accelerator.init_trackers("tensorboard")
        if state.total_steps is None or not settings.max_minutes:
            state.total_steps, state.decay_start = self.planned_steps()
        self.heldout_loss: float | None = None
        self.step_seconds: list[float] = []
        self.speed_from: tuple[int, float] | None = None
        loss_sum, norm_sum, logged = torch.zeros((), device=self.device), 0.0, state.step
        loss_sum = loss_sum.double() if self.device.type != "mps" else loss_sum

        with Progress(enabled=self.main) as self.progress:
            self.say_hello()
            batches = self.batches()
            while not self.finished():
                start = time.perf_counter()
                loss, norm = self.step(batches)
                loss_sum, norm_sum = loss_sum + loss, norm_sum + norm
                state.step += 1
                state.images += self.images_per_step
                state.seconds = time.perf_counter() - self.begin
                self.step_seconds.append(time.perf_counter() - start)
                self.fix_total_steps()

                last = self.finished()
                if state.step % settings.logging_steps == 0 or last:
                    count = state.step - logged
                    self.write_log(float(loss_sum) / count, float(norm_sum) / count, count)
                    loss_sum, norm_sum, logged = loss_sum * 0, norm_sum * 0, state.step
                if state.step % settings.heldout_steps == 0 or last:
                    self.write_heldout()
                if state.step % settings.preview_steps == 0 or last:
                    self.write_preview()
                if state.step % settings.save_steps == 0 or last:
                    self.save_numbered()
        self.accelerator.end_training()
        return state

    def step(self, batches: Iterator[Batch]) -> tuple[Tensor, Tensor]:
        """One update of the weights; returns the mean loss and the gradient's norm, unsynchronised."""
        settings, state = self.config.training, self.state
        share = learning_rate_share(
            self.config.lr_scheduler, state.step, state.total_steps, state.decay_start
        )
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * share
        self.model.train()
        total = torch.zeros((), device=self.device)
        for micro in range(settings.gradient_accumulation_steps):
            batch = next(batches).to(self.device)
            if batch.refused:
                self.report_refused(batch)
            if self.config.model.dropout:
                # The masks, too, are a function of the count; the same stream is never used twice.
                rank = self.accelerator.process_index
                names = ("dropout", state.images, micro, rank)
                torch.manual_seed(seeded_generator(settings.seed, *names).initial_seed())
            last = micro == settings.gradient_accumulation_steps - 1
            with self.accelerator.no_sync(self.model) if not last else contextlib.nullcontext():
                loss = self.loss(batch) / settings.gradient_accumulation_steps
                (self.scaler.scale(loss) if self.scaler else loss).backward()
            total += loss.detach()
        if self.scaler:
            for optimizer in self.optimizers.values():
                self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)
        for optimizer in self.optimizers.values():
            self.scaler.step(optimizer) if self.scaler else optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.scaler:
            self.scaler.update()
        self.update_average()
        return total, norm

    def loss(self, batch: Batch) -> Tensor:
        """From a picture to its loss: noised at its time, predicted, compared."""
        timesteps = self.objective.path.training_timesteps(batch.u)
        x_t = self.objective.add_noise(batch.picture, batch.noise, timesteps)
        with self.autocast():
            output = self.model(x_t, timesteps, batch.ids)
        if log.isEnabledFor(logging.DEBUG):
            _debug(x_t=x_t, timesteps=timesteps, ids=batch.ids, output=output)
        return self.objective.loss(output, batch.picture, batch.noise, timesteps).mean()

    @torch.no_grad()
    def update_average(self) -> None:
        settings = self.config.training
        decay = 0.0
        if settings.use_ema:
            images = self.state.images + self.images_per_step
            decay = ema_decay(images, self.images_per_step, settings.ema_decay, settings.ema_ramp)
        averaged = [p.detach() for p in self.averaged.parameters()]
        torch._foreach_lerp_(
            averaged, [p.detach() for p in self.bare_model.parameters()], 1 - decay
        )

    # How long

    @property
    def images_per_step(self) -> int:
        settings = self.config.training
        processes = self.accelerator.num_processes
        return settings.batch_size * settings.gradient_accumulation_steps * processes

    def planned_steps(self) -> tuple[int | None, int | None]:
        """Updates in the whole run and the first of the decay; None if minutes are the only bound."""
        settings = self.config.training
        steps = settings.max_steps
        if steps is None and (settings.num_epochs or not settings.max_minutes):
            rows = len(self.data.trained.rows)
            steps = math.ceil((settings.num_epochs or 100) * rows / self.images_per_step)
        if steps is None:
            return None, None
        return steps, steps - round(steps * self.config.lr_scheduler.decay_share)

    def fix_total_steps(self) -> None:
        """In a run bounded by minutes: once the decay is due, fix how many steps are left."""
        budget = (self.config.training.max_minutes or 0) * 60
        state = self.state
        if self.speed_from is None and len(self.step_seconds) == 3:
            self.speed_from = state.step, state.seconds  # what was compiled is compiled by now
        if state.total_steps is not None or self.speed_from is None:
            return
        share = self.config.lr_scheduler.decay_share
        if state.seconds < budget * (1 - share):
            return
        first, since = self.speed_from
        per_step = (state.seconds - since) / max(1, state.step - first) or self.step_seconds[-1]
        steps_left = max(1, int((budget - state.seconds) / per_step))
        fixed = [state.step + steps_left, state.step]
        if self.accelerator.num_processes > 1:
            fixed = broadcast_object_list(fixed)
        state.total_steps, state.decay_start = fixed

    def finished(self) -> bool:
        state, minutes = self.state, self.config.training.max_minutes
        late = minutes is not None and state.seconds > minutes * 60 * 1.15
        return late or (state.total_steps is not None and state.step >= state.total_steps)

    def seconds_left(self) -> float | None:
        if self.state.total_steps is None:
            return max(0.0, (self.config.training.max_minutes or 0) * 60 - self.state.seconds)
        if not self.step_seconds:
            return None
        return (self.state.total_steps - self.state.step) * statistics.median(
            self.step_seconds[-50:]
        )

    # What is said and kept

    def say_hello(self) -> None:
        model, data, state = self.bare_model, self.data, self.state
        million = sum(p.numel() for p in model.parameters()) / 1e6
        self.event(
            f"{million:.1f}M parameters on {devices.describe(self.device)} in "
            f"{str(self.dtype).removeprefix('torch.')}; {len(data.trained.rows)} pictures to learn "
            f"from, {len(data.held_out.rows)} held out"
        )
        if state.step:
            self.event(f"resumed at step {state.step}, {state.images:,} pictures seen")
        if new := self.log.refuse(data.set.refused):
            self.event(
                f"{len(new)} rows cannot be used (refused.jsonl): {new[0].key}: {new[0].reason}"
            )
        if sentence := warn_of_long_captions(data.trained.rows, self.tokenizer):
            self.event(sentence)
        self.compile()
        grid = self.config.training.heldout_pictures
        self.grids = {
            "": FixedGrid.of(data.held_out, self.tokenizer, grid),
            "train_": FixedGrid.of(data.trained, self.tokenizer, grid),
        }
        self.prompts = preview_prompts(self.config, data.trained.rows, data.held_out.rows)

    def compile(self) -> None:
        """Compile each kind of block once; its instances share the code."""
        if not self.config.training.compile_model:
            return
        if reason := devices.why_not_compile(self.device):
            self.event(f"torch.compile is off, the run is slower for it: {reason}")
            return
        for block in [*self.bare_model.denoiser.blocks, *self.bare_model.text_encoder.blocks]:
            block.compile()

    def event(self, message: str) -> None:
        seconds = round(time.perf_counter() - self.begin, 2)
        self.log.write("event", self.state.step, seconds=seconds, message=message)
        self.progress.message(message)

    def report_refused(self, batch: Batch) -> None:
        for row in self.log.refuse(batch.refused):
            self.event(f"a picture was passed over: {row.reason}")

    def write_log(self, loss: float, norm: float, steps: int) -> None:
        state = self.state
        if not math.isfinite(loss):
            raise LimnerError(
                f"the loss is {loss} at step {state.step}: try a lower training.learning_rate or "
                "training.mixed_precision bf16 or no; the last checkpoint is kept"
            )
        if self.accelerator.num_processes > 1:
            loss = float(self.accelerator.reduce(torch.tensor(loss, device=self.device), "mean"))
        speed = self.images_per_step / statistics.median(self.step_seconds[-max(steps, 5) :])
        self.log.write(
            "train",
            state.step,
            images=state.images,
            seconds=round(state.seconds, 3),
            loss=loss,
            grad_norm=norm,
            learning_rate=next(iter(self.optimizers.values())).param_groups[0]["lr"],
            images_per_second=round(speed, 2),
        )
        self.progress.update(
            state.step,
            state.total_steps,
            state.images,
            speed,
            loss,
            self.heldout_loss,
            self.seconds_left(),
        )

    def write_heldout(self) -> None:
        if not self.main:
            return
        values: dict[str, Any] = {}
        for prefix, grid in self.grids.items():
            if grid is None:
                continue
            with self.autocast():
                losses = loss_by_level(
                    self.averaged,
                    self.objective,
                    grid,
                    self.config.training.batch_size,
                    self.device,
                )
            values |= {f"{prefix}loss": mean(losses), f"{prefix}loss_by_level": losses}
        self.heldout_loss = values.get("loss")
        state = self.state
        self.log.write(
            "heldout", state.step, images=state.images, seconds=round(state.seconds, 3), **values
        )

    def write_preview(self) -> None:
        if self.main:
            path = self.folder / "previews" / f"step-{self.state.step:06d}.png"
            save_preview(
                path,
                self.averaged,
                self.objective,
                self.tokenizer,
                self.prompts,
                self.config,
                self.dtype,
            )

    def save_numbered(self) -> None:
        self.save_checkpoint(self.folder / f"checkpoint-{self.state.step}")
        limit = self.config.training.checkpoints_total_limit
        if self.main and limit:
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
                self.optimizers,
                self.tokenizer,
                self.config,
                self.state,
            )
        self.accelerator.wait_for_everyone()
        return path

    # Small parts

    @property
    def _fp16(self) -> bool:
        return self.dtype == torch.float16

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def batches(self) -> Iterator[Batch]:
        """The batches from here on, loaded ahead by the workers."""
        settings = self.config.training
        examples = TrainingExamples(
            self.data.trained,
            self.tokenizer,
            settings.seed,
            settings.caption_dropout if self.config.sampling.guidance_scale != 1 else 0.0,
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
            batch_sampler=counts,  # type: ignore[arg-type]  # endless, hence without a length
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
        log_with=trackers or None,  # type: ignore[arg-type]
        project_dir=config.training.output_dir,
    )


def _find_resume(resume: str | Path | None, folder: Path) -> Checkpoint | None:
    if resume is None:
        return None
    if str(resume) == "latest":
        if not checkpoints(folder):
            raise LimnerError(
                f"--resume latest: no checkpoint in {folder.absolute()}; start without --resume, "
                "or set training.output_dir to the run's folder"
            )
        return Checkpoint.open(folder)
    return Checkpoint.open(resume)


def _check_supported(config: Config) -> None:
    for section in ("vae", "text_encoder"):
        if getattr(config, section).pretrained_model_name is not None:
            raise LimnerError(
                f"{section}.pretrained_model_name: pretrained parts cannot be used yet; set it to "
                "null to train in pixel space with the built-in text encoder"
            )


def _debug(**tensors: Tensor) -> None:
    for name, t in tensors.items():
        low, high = float(t.min()), float(t.max())
        log.debug("%s %s %s from %.3g to %.3g", name, tuple(t.shape), t.dtype, low, high)
