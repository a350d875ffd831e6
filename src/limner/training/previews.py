"""The same prompts and seeds, drawn again and again while the model learns."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from limner.config import Config
from limner.data.pictures import to_pil
from limner.data.rows import Row
from limner.diffusion.objective import Objective
from limner.inference.contact_sheet import contact_sheet
from limner.inference.sampling import draw
from limner.models.text_to_image import TextToImage
from limner.text.tokenizer import CaptionTokenizer
from limner.training.heldout import spread


def preview_prompts(config: Config, trained: list[Row], held_out: list[Row]) -> list[str]:
    """The configured prompts, or eight captions, half of them never trained on."""
    if config.training.preview_prompts is not None:
        return list(config.training.preview_prompts)
    unseen = [held_out[i].captions[0] for i in spread(len(held_out), 4)]
    return [trained[i].captions[0] for i in spread(len(trained), 8 - len(unseen))] + unseen


def save_preview(
    path: Path,
    model: TextToImage,
    objective: Objective,
    tokenizer: CaptionTokenizer,
    prompts: list[str],
    config: Config,
    dtype: torch.dtype,
) -> None:
    """Draw the prompts with seeds 0, 1, 2, ... as a sheet, in training's batches and precision."""
    size = config.data.image_size
    pictures: list[Image.Image] = []
    for first in range(0, len(prompts), config.training.batch_size):
        some = prompts[first : first + config.training.batch_size]
        seeds = range(first, first + len(some))
        pictures += to_pil(
            draw(model, objective, tokenizer, some, seeds, config.sampling, size, size, dtype)
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(pictures, prompts).save(path)
