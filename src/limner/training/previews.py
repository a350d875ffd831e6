"""The same prompts and seeds, drawn again and again while the model learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from limner.config import Config
from limner.data.pictures import to_pil
from limner.data.rows import Row
from limner.device import in_parts_that_fit, is_out_of_memory, part_precision
from limner.diffusion.objective import Objective
from limner.inference.contact_sheet import contact_sheet
from limner.inference.sampling import draw
from limner.models.latent_space import LatentSpace, PixelSpace
from limner.models.text_to_image import TextToImage
from limner.text.words import Words
from limner.training.heldout import spread


def preview_prompts(config: Config, trained: Sequence[Row], held_out: Sequence[Row]) -> list[str]:
    """The configured prompts, or eight captions, half of them never trained on."""
    if config.training.preview_prompts is not None:
        return list(config.training.preview_prompts)
    unseen = [held_out[i].captions[0] for i in spread(len(held_out), 4)]
    return [trained[i].captions[0] for i in spread(len(trained), 8 - len(unseen))] + unseen


def save_preview(
    path: Path,
    model: TextToImage,
    objective: Objective,
    words: Words,
    space: PixelSpace | LatentSpace,
    prompts: list[str],
    config: Config,
    dtype: torch.dtype,
) -> None:
    """Draw the prompts with seeds 0, 1, 2, ... as a sheet, in training's precision and batches,
    or in smaller ones if memory is short."""
    side = config.data.image_size // space.downsampling

    def pictures_of(at_once: int) -> list[Image.Image]:
        pictures: list[Image.Image] = []
        for first in range(0, len(prompts), at_once):
            some = prompts[first : first + at_once]
            seeds = range(first, first + len(some))
            drawn = draw(model, objective, words, some, seeds, config.sampling, side, side, dtype)
            pictures += to_pil(decode_within_memory(space, drawn, part_precision(dtype)))
        return pictures

    pictures = in_parts_that_fit(config.training.micro_batch_size, pictures_of)
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(pictures, prompts).save(path)


def decode_within_memory(
    space: PixelSpace | LatentSpace, latents: Tensor, dtype: torch.dtype
) -> Tensor:
    """Pictures from latents, with an autoencoder that is in memory only for that long.

    One at a time, and on the processor if the device has no room even for one, so that no preview
    needs more memory than training did.
    """

    def decode(device: torch.device) -> Tensor:
        space.load(device, dtype)
        return torch.cat([space.decode(one[None].to(device)).cpu() for one in latents])

    try:
        return decode(latents.device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        space.unload()
        return decode(torch.device("cpu"))
    finally:
        space.unload()
