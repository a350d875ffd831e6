"""Checkpoints of models that never trained: all they need to draw, in a moment."""

from pathlib import Path

import torch
from pretrained import tiny_autoencoder, tiny_clip
from tiny import TINY

from limner.checkpoint.folder import Contents, save_checkpoint
from limner.checkpoint.state import TrainingState
from limner.config import load_config
from limner.models.text_to_image import TextToImage, build_model
from limner.pretrained.components import open_parts
from limner.text.tokenizer import CaptionTokenizer

CAPTIONS = ["a small red circle", "two blue squares above a green cross", "红苹果"]


def made_up_in_latents(folder: Path, parts: Path) -> Path:
    """One that draws in latents and reads with a pretrained encoder, both in `parts`."""
    return made_up_checkpoint(
        folder,
        f"text_encoder.pretrained_model_name='{tiny_clip(parts / 'clip', whole=True)}'",
        "text_encoder.max_length=null",
        f"vae.pretrained_model_name='{tiny_autoencoder(parts / 'vae')}'",
        "data.image_size=32",
        "model.patch_size=2",
    )


def made_up_checkpoint(folder: Path, *overrides: str) -> Path:
    """A checkpoint whose pictures depend on every weight; its averaged weights differ from those
    "as trained". Overrides are those of a configuration, on top of the smallest one."""
    cache = f"cache.folder='{folder.parent / 'cache'}'"
    parts = open_parts(load_config(None, [*TINY, cache, *overrides]))
    config, tokenizer = parts.config, None
    if parts.text_encoder is None:
        assert config.text_encoder.max_length
        tokenizer = CaptionTokenizer.learn(CAPTIONS, 300, config.text_encoder.max_length)
    size = tokenizer.text_size if tokenizer else parts.text_encoder.text_size  # type: ignore[union-attr]

    def model(seed: int) -> TextToImage:
        torch.manual_seed(seed)
        model = build_model(config, size)
        for parameter in model.parameters():  # those that begin at zero, too
            parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
        return model

    state = TrainingState(step=3, images=12, seconds=4.5)
    return save_checkpoint(folder, Contents.of(model(1), model(2), {}, tokenizer, config, state))
