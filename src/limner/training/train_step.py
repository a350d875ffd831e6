"""One training step: forward, loss, backward, optimizer; out-of-memory and non-finite losses.

If memory runs out, the batch is repeated in smaller parts: the gradient is a sum over pictures, so
only rounding changes. If the loss or the gradient is not finite, the weights stay as they are.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limner.checkpoint.state import TrainingState
from limner.config import Config
from limner.data.examples import Batch
from limner.diffusion.objective import Objective
from limner.distributed.dtensors import is_shard
from limner.distributed.processes import any_process, average_gradients, clip_gradients
from limner.errors import LimnerError
from limner.memory import give_back_freed_memory, is_out_of_memory
from limner.models.dropout import seed_dropout
from limner.training.loss_weighting import LevelBalance

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepResult:
    """The result of an update."""

    loss: float
    """Mean over this process's pictures."""
    norm: float
    """L2 norm of the whole gradient, before clipping."""
    skipped: bool
    """Whether the weights are unchanged because the loss or the gradient was not finite."""


class ShortOfMemory(LimnerError):
    """Memory ran out in this process while others wait for its shard of a weight: they cannot be
    notified, so all processes have to start again."""


class PartialOptimizerStep(Exception):
    """Memory ran out while the weights were being updated: they must be restored from a
    checkpoint."""


class TrainStep:
    """Performs updates of the weights from batches.

    Args:
        model: computes in `dtype` under autocast; its parameters are float32.
        optimizers: step one after the other.
        scaler: scales the gradients of float16; else None.
        state: its `pieces` is the number of parts that each micro-batch is split into.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizers: dict[str, torch.optim.Optimizer],
        scaler: torch.amp.GradScaler | None,
        config: Config,
        state: TrainingState,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.model, self.objective = model, objective
        self.optimizers, self.scaler = optimizers, scaler
        self.max_grad_norm = config.training.max_grad_norm
        self.dropout = config.model.dropout > 0 or config.lora.dropout > 0
        self.balance = LevelBalance(config.scheduler.level_balance or 0.0, device)
        self.state, self.device, self.dtype = state, device, dtype
        self.sharded = any(map(is_shard, model.parameters()))

    def __call__(
        self,
        batches: Sequence[Batch],
        progress: float = 0.0,
    ) -> StepResult:
        """One update from these micro-batches.

        Args:
            progress: how far the timestep distribution has shifted towards its final one, 0 to 1.

        Raises:
            LimnerError: not even one picture fits into memory.
            PartialOptimizerStep, ShortOfMemory: see these classes.
        """
        loss = self.gradients_within_memory(batches, progress)
        average_gradients(self.model.parameters())
        if self.scaler:
            for optimizer in self.optimizers.values():
                self.scaler.unscale_(optimizer)
        norm = clip_gradients(self.model.parameters(), self.max_grad_norm)
        skipped = any_process(not self.is_good(loss, norm))
        if skipped:
            self.balance.forget()
        else:
            self.change_weights()
            self.balance.learn()
        if self.scaler:  # it learns from skipped updates, too
            self.scaler.update()
        self.forget_gradients()
        self.state.count_skipped(skipped)
        return StepResult(loss, norm, skipped)

    def is_good(self, loss: float, norm: float) -> bool:
        # float16 gradients overflow until the scaler has found its scale: this is normal.
        searching = self.scaler is not None and self.scaler.get_scale() > 1
        return math.isfinite(loss) and (math.isfinite(norm) or searching)

    def gradients_within_memory(self, batches: Sequence[Batch], progress: float) -> float:
        """Compute the gradients, in smaller parts if memory runs out; returns the mean loss."""
        while True:
            loss, reason = math.nan, ""
            try:
                loss = float(self.gradients(batches, progress))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = " ".join(str(error).split())[:120] or type(error).__name__
            # Outside the handler, which would keep alive all that the failed pass computed.
            if not (bool(reason) if self.sharded else any_process(bool(reason))):
                return loss
            self.forget_gradients()
            self.balance.forget()
            give_back_freed_memory()
            largest = max(len(batch) for batch in batches)
            if self.state.pieces >= largest:
                raise LimnerError(
                    f"out of memory with a batch of one picture ({reason}); use a smaller model, "
                    "training.gradient_checkpointing=true, or training.mixed_precision=bf16 "
                    "(limner estimate shows what fits)"
                )
            self.state.split_micro_batches(2 * self.state.pieces)
            size = -(-largest // self.state.pieces)
            if self.sharded:
                raise ShortOfMemory(
                    f"out of memory at step {self.state.step + 1} ({reason}), in the middle of a "
                    "collective operation of a sharded model. Start all processes again; the run "
                    f"resumes from its last checkpoint with a micro-batch of {size} (torchrun "
                    "--max_restarts does this automatically)"
                )
            log.info(
                f"out of memory at step {self.state.step + 1} ({reason or 'in another process'}); "
                f"the micro-batch is now {size}, the effective batch size stays "
                f"{sum(map(len, batches))}"
            )

    def gradients(self, batches: Sequence[Batch], progress: float) -> Tensor:
        """Accumulate the gradients of all parts; returns the mean loss without synchronising."""
        self.model.train()
        total = torch.zeros((), device=self.device)
        images = sum(map(len, batches))
        for batch in batches:
            for piece in batch.pieces(self.state.pieces):
                here = piece.to(self.device)
                timesteps = self.timesteps(here, progress)
                losses = self.loss(here, timesteps)
                levels = timesteps / self.objective.noise_schedule.num_train_timesteps
                loss = (losses * self.balance.weights(levels)).sum() / images
                (self.scaler.scale(loss) if self.scaler else loss).backward()
                self.balance.see(levels, losses)
                total += losses.detach().sum() / images
        return total

    def timesteps(self, batch: Batch, progress: float = 0.0) -> Tensor:
        """The training timestep of each picture, [B]."""
        return self.objective.noise_schedule.training_timesteps(batch.u, progress)

    def loss(self, batch: Batch, timesteps: Tensor) -> Tensor:
        """The loss [B] of pictures (or latents): add noise, predict, compare."""
        if self.dropout:
            seed_dropout(self.model, batch.dropout_seed)
        x_t = self.objective.add_noise(batch.image, batch.noise, timesteps)
        with self.autocast():
            output = self.model(x_t, timesteps, batch.text)
        return self.objective.loss(output, batch.image, batch.noise, timesteps)

    def change_weights(self) -> None:
        short = False
        try:
            for optimizer in self.optimizers.values():
                self.scaler.step(optimizer) if self.scaler else optimizer.step()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            short = True
        if short and self.sharded:
            raise ShortOfMemory(
                f"out of memory in the optimizer update of step {self.state.step + 1}. Start all "
                "processes again; the run resumes from its last checkpoint"
            )
        if not self.sharded and any_process(short):
            self.forget_gradients()
            give_back_freed_memory()
            raise PartialOptimizerStep

    def forget_gradients(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def stateful(update: TrainStep) -> dict[str, Any]:
    """Objects with state from update to update, besides the weights."""
    scaler = {"scaler": update.scaler} if update.scaler else {}
    return {**update.optimizers, "balance": update.balance, **scaler}
