"""The state of a run: everything that the training loop works with."""

from __future__ import annotations

import functools
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from limner.checkpoint.lineage import Lineage
from limner.checkpoint.state import TrainingState
from limner.config import Config
from limner.data.open import Data
from limner.diffusion.objective import Objective
from limner.files.folder_lock import FolderLock
from limner.models.text_to_image import TextToImage
from limner.pretrained.components import Parts
from limner.pretrained.text_encoder import PretrainedTextEncoder
from limner.text.known_words import KnownWords
from limner.text.tokenizer import CaptionTokenizer
from limner.training.ema import EMA
from limner.training.inputs import Inputs, open_inputs
from limner.training.lr_schedule import decay_progress, ema_decay, learning_rate_share
from limner.training.monitor.run_log import RunEvents
from limner.training.train_step import TrainStep


@dataclass
class Run:
    """The result of `open_run`. Only `state`, `model`, `ema`, and the state of `train_step` change
    during training."""

    config: Config
    """Resolved: no value is left open."""
    folder: Path
    lock: FolderLock
    """Held from when the run is opened until it ends."""
    accelerator: Accelerator
    device: torch.device
    dtype: torch.dtype
    """Precision of the forward pass; the weights are float32."""
    parts: Parts
    data: Data
    rows: np.ndarray | None
    """Which rows are trained, in the main process: see limner.data.row_fingerprints."""
    lineage: Lineage
    tokenizer: CaptionTokenizer | None
    """None: captions are read by a pretrained text encoder."""
    objective: Objective
    model: TextToImage
    ema: EMA
    train_step: TrainStep
    state: TrainingState
    events: RunEvents = field(default_factory=RunEvents)
    """Messages logged while the run was opened, kept for the start of its log."""
    words: KnownWords | None = None
    """Of the training captions, in the main process; None with a pretrained text encoder."""

    def __post_init__(self) -> None:
        weakref.finalize(self, self.lock.release)

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def averaged(self) -> TextToImage:
        """The EMA model, for sampling."""
        return self.ema.model

    @property
    def reader(self) -> PretrainedTextEncoder | CaptionTokenizer:
        """Turns captions into inputs of the model."""
        found = self.parts.text_encoder or self.tokenizer
        assert found is not None
        return found

    @property
    def sharded(self) -> bool:
        """Whether the model is sharded."""
        return is_sharded(self.config, self.accelerator)

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return self.train_step.optimizers

    @property
    def images_per_step(self) -> int:
        """Pictures per update over all processes."""
        settings = self.config.training
        micro_batches = settings.gradient_accumulation_steps * self.accelerator.num_processes
        return settings.micro_batch_size * micro_batches

    @functools.cached_property
    def inputs(self) -> Inputs:
        """Pictures or latents, token ids or text embeddings; what pretrained parts compute is
        computed at first access and stored (see `limner.training.inputs`)."""
        return open_inputs(
            self.config, self.data, self.parts, self.tokenizer, self.device, self.dtype
        )

    # What depends on the step alone

    @property
    def _schedule(self) -> tuple[Any, int, int | None, int | None]:
        state = self.state
        return self.config.lr_scheduler, state.step, state.total_steps, state.decay_start

    @property
    def decay_progress(self) -> float:
        """Progress of the learning rate decay, and of the timestep mean with it: 0 to 1."""
        return decay_progress(*self._schedule)

    def set_learning_rate(self) -> float:
        """Set the learning rate of this step; returns it."""
        peak = self.config.training.learning_rate
        assert peak is not None, "load_config resolves it"
        rate = peak * learning_rate_share(*self._schedule)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("rate_share", 1.0)
        return rate

    def update_ema(self) -> None:
        """Call after the weights have changed and before the step is counted."""
        settings, decay = self.config.training, 0.0
        if settings.use_ema:
            per_step = self.images_per_step
            images = self.state.images + per_step
            decay = ema_decay(images, per_step, settings.ema_decay, settings.ema_ramp)
        self.ema.update(self.model, decay)


def is_sharded(config: Config, accelerator: Accelerator) -> bool:
    return config.training.sharding != "none" and accelerator.num_processes > 1
