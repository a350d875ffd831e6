"""Metrics of a model during training that do not depend on its objective."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner.config import SamplingConfig
from limner.data.examples import Source
from limner.data.images import to_pil
from limner.data.order import evenly_spaced, seeded_generator
from limner.diffusion.noise_schedule import FlowMatchingSchedule
from limner.diffusion.objective import Objective
from limner.evaluation.networks import efficientnet
from limner.inference.sampling import draw
from limner.metrics import retrieval
from limner.metrics.flat_regions import flat_region_std
from limner.metrics.kernel_distance import kernel_distance
from limner.models.text_to_image import TextToImage
from limner.training.monitor.heldout import LEVELS, FixedGrid, mean
from limner.training.trainer import Trainer

TRAINED = 148
"""Trained prompts that are drawn, one picture each."""
PER_PROMPT = 4
"""Pictures of each held-out prompt."""
AT_ONCE = 32
SPLITS = ("held_out", "trained")


def measure(trainer: Trainer, model: TextToImage) -> dict[str, Any]:
    """Recall among all pictures, kernel distance to the held-out ones, and denoising error."""
    trained, held_out = trainer.data.trained, trainer.data.held_out
    some = evenly_spaced(len(trained.rows), TRAINED)
    drawn_trained = drawn(trainer, model, [trained.rows[i].captions[0] for i in some])
    prompts = [row.captions[0] for row in held_out.rows] * PER_PROMPT
    drawn_held_out = drawn(trainer, model, prompts)
    everything = torch.stack([p.load(i) for p in (trained, held_out) for i in range(len(p.rows))])
    real = everything[len(trained.rows) :]
    places = list(range(len(trained.rows), len(everything))) * PER_PROMPT
    errors = {name: error_by_level(trainer, model, getattr(trainer.data, name)) for name in SPLITS}
    return {
        "trained": retrieval.summary(retrieval.ranks(drawn_trained, some, everything)),
        "held_out": retrieval.summary(retrieval.ranks(drawn_held_out, places, everything)),
        "flat_region_std": {
            name: round(float(flat_region_std(images).mean()), 3)
            for name, images in (
                ("trained", drawn_trained),
                ("held_out", drawn_held_out),
                ("real", everything),
            )
        },
        "kernel_distance": round(1000 * kernel_distance(seen(drawn_held_out), seen(real)), 3),
        "held_out_error": round(mean(errors["held_out"]), 5),
        "held_out_error_by_level": errors["held_out"],
        "trained_error": round(mean(errors["trained"]), 5),
    }


def drawn(trainer: Trainer, model: TextToImage, prompts: list[str]) -> Tensor:
    """uint8 [N, S, S, 3], the i-th from seed i."""
    sampling: SamplingConfig = trainer.config.sampling
    side = trainer.config.data.image_size
    images = []
    for first in range(0, len(prompts), AT_ONCE):
        part = prompts[first : first + AT_ONCE]
        seeds = list(range(first, first + len(part)))
        made = draw(
            model,
            trainer.run.objective,
            trainer.run.reader,
            part,
            seeds,
            sampling,
            side,
            side,
            torch.bfloat16,
        )
        images += [torch.from_numpy(np.array(image)) for image in to_pil(made)]
    return torch.stack(images)


@functools.cache
def network() -> efficientnet.EfficientNetLite0:
    return efficientnet.open_network()


def seen(images: Tensor) -> Tensor:
    return efficientnet.features(network(), images)


@torch.no_grad()
def error_by_level(
    trainer: Trainer, model: TextToImage, images: Source, count: int = 64
) -> dict[str, float]:
    """Mean of |x_0 predicted - x_0|^2 / sigma^2 at each level, in terms of the straight path.

    The same pictures, noise, and signal-to-noise ratios for every objective: a noise schedule of
    betas is asked at the timestep that has the ratio, with its picture scaled as it expects it.
    """
    grid, _ = FixedGrid.of(images, trainer.run.inputs.words, count)
    assert grid is not None
    assert isinstance(grid.texts, Tensor)
    assert isinstance(grid.images, Tensor), "squares are compared"
    objective: Objective = trainer.run.objective
    errors: dict[str, float] = {}
    for level in LEVELS:
        t = timestep_of(objective, level)
        image = grid.images
        noise = torch.stack(
            [
                torch.randn(
                    image.shape[1:], generator=seeded_generator(0, "error", i, int(1000 * level))
                )
                for i in range(len(image))
            ]
        )
        timesteps = torch.full((len(image),), t)
        x_t = objective.add_noise(image, noise, timesteps)
        output = model(x_t, timesteps, grid.texts)
        error = (objective.to_x0(output, x_t, timesteps) - image).square().mean()
        errors[str(level)] = round(float(error) / level**2, 5)
    return errors


def timestep_of(objective: Objective, level: float) -> float:
    """The timestep at which noise over picture is level / (1 - level)."""
    path = objective.noise_schedule
    if isinstance(path, FlowMatchingSchedule):
        return level * path.num_train_timesteps
    wanted = np.log((1 - level) / level)
    table = path.log_snr(torch.arange(path.num_train_timesteps, dtype=torch.float64)).numpy()
    return float(np.interp(-wanted, -table, np.arange(len(table))))
