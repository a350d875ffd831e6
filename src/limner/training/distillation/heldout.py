"""How far a student's drawings are from those of its teacher, from the same noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limner.data.dataset import ImageError, Refused
from limner.data.examples import Captions
from limner.data.order import evenly_spaced
from limner.diffusion.flow_map import flow_map_denoiser
from limner.diffusion.objective import Objective
from limner.diffusion.solvers import ddim
from limner.models.text_to_image import TextToImage
from limner.text.batch import TextEmbeddings
from limner.text.words import some, stack
from limner.training.distillation.trajectories import Trajectories

STEPS = (1, 2, 4)
"""In which a student is measured and shown."""


@dataclass(frozen=True)
class TeacherDrawings:
    """Where some trajectories begin and end."""

    noise: Tensor  # float32 [N, C, h, w]
    images: Tensor  # float32 [N, C, h, w]
    texts: Tensor | TextEmbeddings  # of N captions
    timesteps: Tensor  # float64 [steps + 1]
    guidance: Tensor | None  # float32 [N], scales; None: the student is told none

    @classmethod
    def of(
        cls, trajectories: Trajectories, captions: Captions, count: int
    ) -> tuple[TeacherDrawings | None, list[Refused]]:
        """At most `count`, evenly spread (None: there is none), and what is damaged among them."""
        good: list[tuple[Tensor, Any]] = []
        scales: list[float | None] = []
        refused: list[Refused] = []
        for number in evenly_spaced(len(trajectories), count):
            try:
                states, drawing = trajectories.states(number), trajectories.drawings[number]
                good.append((states[[0, -1]], captions(drawing.caption)))
                scales.append(drawing.guidance)
            except ImageError as error:
                refused.append(Refused(f"trajectory {number}", str(error)))
        if not good:
            return None, refused
        noise, images = torch.stack([ends for ends, _ in good]).unbind(1)
        told = [scale for scale in scales if scale is not None]
        guidance = torch.tensor(told) if told else None
        texts = stack([t for _, t in good])
        return cls(noise, images, texts, trajectories.timesteps, guidance), refused

    @torch.no_grad()
    def loss_by_level(
        self,
        model: TextToImage,
        objective: Objective,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> dict[str, float]:
        """Mean squared difference of the finished drawings, keyed by the number of steps."""
        sums = dict.fromkeys(map(str, steps_of(self.timesteps)), 0.0)
        for first in range(0, len(self.noise), batch_size):
            part = slice(first, first + batch_size)
            noise, wanted = self.noise[part].to(device), self.images[part].to(device)
            encoded = model.text_encoder(some(self.texts, part).to(device))
            text = model.denoiser.prepare(encoded)
            scales = None if self.guidance is None else self.guidance[part].to(device)
            for steps in sums:
                times = self.timesteps[:: (len(self.timesteps) - 1) // int(steps)]
                denoise = flow_map_denoiser(model, objective, text, times, dtype, scales)
                drawn = ddim(denoise, noise, times, objective.noise_schedule)
                sums[steps] += float((drawn - wanted).square().mean(dim=(1, 2, 3)).sum())
        return {steps: total / len(self.noise) for steps, total in sums.items()}


def steps_of(timesteps: Tensor) -> list[int]:
    """Those of `STEPS` that are whole parts of a trajectory."""
    whole = len(timesteps) - 1
    return [steps for steps in STEPS if whole % steps == 0]
