"""A training step of a student: its loss is that of a flow map."""

from __future__ import annotations

from torch import Tensor

from limner.data.examples import Batch
from limner.diffusion.flow_map import flow_map_loss
from limner.models.dropout import seed_dropout
from limner.training.train_step import TrainStep


class FlowMapStep(TrainStep):
    """Takes batches of `TrajectoryPairs`."""

    def timesteps(self, batch: Batch, progress: float = 0.0) -> Tensor:
        """The time s of each pair, [B]."""
        return batch.u[:, 0]

    def loss(self, batch: Batch, timesteps: Tensor) -> Tensor:
        if self.dropout:
            seed_dropout(self.model, batch.dropout_seed)
        s, r = batch.u.unbind(1)
        with self.autocast():
            output = self.model(batch.noise, s, batch.text, s - r)
        losses = flow_map_loss(self.objective, output, batch.noise, batch.image, s, r)
        # A step misses its end by the span times the error of the velocity, and of the n steps of
        # a drawing each is chosen with 1/n: so weighted, drawings in any number count the same.
        return losses * (s - r) / self.objective.noise_schedule.num_train_timesteps
