"""Initial weights of a run: determined by the seed and by the model that it starts from."""

from __future__ import annotations

import torch

from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.single_file import WeightsFile
from limner.config import Config
from limner.models.text_to_image import TextToImage, build_model
from limner.text.tokenizer import CaptionTokenizer
from limner.training.init_from import other_meaning, start_from
from limner.training.lora import add_adapters


def first_model(
    config: Config,
    tokenizer: CaptionTokenizer | None,
    text_size: int,
    origin: Checkpoint | WeightsFile | None,
    device: torch.device,
) -> tuple[TextToImage, list[str]]:
    """Build the model of a run, the same in every process.

    Args:
        text_size: words in the tokenizer, or the width of a pretrained text encoder.
        origin: the model that the run starts from (`training.init_from`), or None.

    Returns:
        The model, on the device, and notes about it.
    """
    torch.manual_seed(config.training.seed)
    model = build_model(config, text_size).to(device)
    notes = other_meaning(origin, config)
    notes += start_from(model, tokenizer, origin, config.lora.rank is not None)
    if config.model.flow_map:
        model.text_encoder.requires_grad_(False)  # what captions mean stays what the teacher knows
    return model, notes + add_adapters(model, config)
