"""The held-out loss of a trained model by noise level, with confidence intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner.config import Config
from limner.data.dataset import ImageError
from limner.data.examples import DecodedImages
from limner.data.images import to_tensor
from limner.data.open import Data
from limner.data.order import evenly_spaced
from limner.device import name_of
from limner.evaluation.reference.sources import DataImages
from limner.inference.generator import ImageGenerator
from limner.memory import in_parts_that_fit
from limner.metrics.interval import bootstrapped_mean, interval_of_difference
from limner.training.monitor.heldout import LEVELS, FixedGrid, losses_by_level

AT_ONCE = 32


def measure_loss(
    generator: ImageGenerator, data: Data, most: int, progress: Callable[[int, int], None]
) -> dict[str, Any] | None:
    """Loss on held-out and training images by noise level; None if no images are held out.

    A gap whose confidence interval lies above 0 indicates memorisation.

    Args:
        most: images of each split, evenly spaced.
    """
    if not len(data.held_out.rows):
        return None
    splits = {"held_out": data.held_out, "trained": data.trained}
    total = sum(min(most, len(images.rows)) for images in splits.values())
    found: dict[str, Tensor] = {}  # [images, levels]
    done = 0
    for name, images in splits.items():
        which = evenly_spaced(len(images.rows), most)
        losses = []
        for first in range(0, len(which), AT_ONCE):
            losses.append(_losses(generator, images, which[first : first + AT_ONCE], first))
            done += len(which[first : first + AT_ONCE])
            progress(done, total)
        found[name] = torch.cat(losses)
    if not all(len(losses) for losses in found.values()):
        return None
    means = {name: losses.double().mean(dim=1) for name, losses in found.items()}
    means_of = {name: bootstrapped_mean(mean.numpy()) for name, mean in means.items()}
    gap = means_of["held_out"].value - means_of["trained"].value
    return {
        **{
            name: {
                f"{level:g}": float(mean)
                for level, mean in zip(LEVELS, losses.double().mean(dim=0), strict=True)
            }
            for name, losses in found.items()
        },
        "count": len(found["held_out"]),
        "trained_count": len(found["trained"]),
        "mean": asdict(means_of["held_out"]),
        "trained_mean": asdict(means_of["trained"]),
        "gap": gap,
        "gap_interval": interval_of_difference(means_of["held_out"], means_of["trained"]),
    }


def protocol(
    config: Config, data: Data, space: str, dtype: torch.dtype, cache: Path
) -> dict[str, Any]:
    """What must be equal for two losses to be comparable.

    The model, the text encoder, the steps, and the weights may differ: they are what is compared.
    """
    which = evenly_spaced(len(data.held_out.rows), config.evaluation.loss_images)
    source = DataImages(data.held_out, which)
    scheduler = config.scheduler
    return {
        "loss.pictures": source.contents(cache).hex(),
        "loss.count": len(which),
        "loss.resize": source.preparation,
        "loss.space": space,
        "loss.objective": scheduler.objective,
        "loss.prediction_type": scheduler.prediction_type,
        "loss.betas": None
        if scheduler.beta_start is None
        else f"{scheduler.beta_start:g} to {scheduler.beta_end:g}, {scheduler.beta_schedule}",
        "loss.timesteps": scheduler.num_train_timesteps,
        "loss.levels": ", ".join(f"{level:g}" for level in LEVELS),
        "loss.dtype": name_of(dtype),
    }


def _losses(
    generator: ImageGenerator, images: DecodedImages, which: list[int], place: int
) -> Tensor:
    """[images, levels], for the images that can be decoded."""
    good, captions = [], []
    for position in which:
        try:
            good.append(to_tensor(images.load(position)))
        except ImageError:  # evaluate lists it
            continue
        captions.append(images.rows[position].captions[0])
    if not good:
        return torch.empty(0, len(LEVELS))
    device, dtype = generator.device, generator.dtype

    def measured(size: int) -> Tensor:
        batch = torch.stack(good).to(device)
        latents = torch.cat([generator.autoencoder.encode(part) for part in batch.split(size)])
        grid = FixedGrid(latents, generator.words.encode(captions))
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            by_level = losses_by_level(
                generator.model, generator.objective, grid, size, device, place
            )
        return torch.stack(list(by_level.values()), dim=1)

    with torch.no_grad():
        return in_parts_that_fit(AT_ONCE, measured)
