"""A training step of a student: its steps shall end where those of its teacher do."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from limner.data.examples import Batch
from limner.diffusion.flow_map import end_of_step, flow_map_loss, span_of
from limner.models.dit import DiT
from limner.models.dropout import seed_dropout
from limner.models.modern import ModernDiT
from limner.models.text_to_image import TextToImage
from limner.text.conditioning import TextConditioning
from limner.training.train_step import TrainStep

SEEN_BY, SEEN_AT = 2, 0.05
"""Blocks of the teacher whose result is compared, and the time at which it sees images, as a share
of all: one at which it looks for the last of the noise."""
SEEN = 0.5
"""Weight of this comparison."""
LAST = 1e-3
"""Timestep below which a step ends at a finished image."""


class FlowMapStep(TrainStep):
    """Takes batches of `TrajectoryPairs`.

    Where a step ends at a finished image, the loss also has how different student's and teacher's
    image look to the teacher's first blocks. A grain is a small error of every pixel, but a network
    that was trained to find noise sees it at once. (Perceptual losses by pretrained networks are
    usual in few-step training, as LPIPS in Song et al. 2023, arXiv 2303.01469; this one needs
    nothing but the user's own model, and works for latents, too.)

    Attributes:
        open_teacher: returns the teacher's denoiser, of whose blocks only the first are needed; it
            is called at the first step.
    """

    open_teacher: Callable[[], ModernDiT | DiT]
    teacher: ModernDiT | DiT | None = None

    def timesteps(self, batch: Batch, progress: float = 0.0) -> Tensor:
        """The time s of each pair, [B]."""
        return batch.u[:, 0]

    def loss(self, batch: Batch, timesteps: Tensor) -> Tensor:
        if self.dropout:
            seed_dropout(self.model, batch.dropout_seed)
        s, r, *guidance = batch.u.unbind(1)
        model = cast("TextToImage", self.model)
        with self.autocast():
            text = model.text_encoder(batch.text)
            output = model.denoiser(batch.noise, s, text, s - r, *guidance)
        losses = flow_map_loss(self.objective, output, batch.noise, batch.image, s, r)
        (last,) = (r < LAST).nonzero(as_tuple=True)
        if len(last):
            ends = end_of_step(self.objective, output, batch.noise, s, r)
            seen = self.seen_apart(ends[last], batch.image[last], text.rows(last))
            weights = SEEN / span_of(self.objective, s, r)[last]
            losses = losses.index_add(0, last, weights * seen)
        return losses

    def seen_apart(self, drawn: Tensor, wanted: Tensor, text: TextConditioning) -> Tensor:
        """How different two images look to the teacher: the mean over its tokens of their squared
        distance, relative to their square, float32 [B]."""
        if self.teacher is None:
            self.teacher = self.open_teacher()
        at = SEEN_AT * self.objective.noise_schedule.num_train_timesteps
        t = torch.full((len(drawn),), at, device=drawn.device)
        with self.autocast():
            with torch.no_grad():
                there = self.teacher.first_blocks(wanted.float(), t, text, SEEN_BY).float()
            here = self.teacher.first_blocks(drawn, t, text, SEEN_BY).float()
        size = there.square().mean(dim=-1, keepdim=True)
        return ((here - there).square() / (size + 1e-3)).mean(dim=(1, 2))
