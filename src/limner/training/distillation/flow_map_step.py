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
        import os
        w = ((s - r) / 1000) ** float(os.environ.get("POWER", "0"))
        return w * flow_map_loss(self.objective, output, batch.noise, batch.image, s, r)
