"""Autoguidance: load a weaker model, such as an earlier checkpoint, to guide away from."""

from __future__ import annotations

from pathlib import Path

import torch

from limner.checkpoint.open_model import open_model
from limner.config import Config
from limner.device import part_precision
from limner.diffusion.objective import build_objective
from limner.errors import LimnerError
from limner.inference.sampling import Guide, ready
from limner.models.text_to_image import build_model
from limner.pretrained.components import open_parts
from limner.pretrained.text_encoder import PretrainedTextEncoder
from limner.text.tokenizer import CaptionTokenizer

SAME_SPACE = {
    "data": ("image_size",),
    "model": ("in_channels",),
    "vae": ("fingerprint",),
    "scheduler": ("objective", "num_train_timesteps", "beta_start", "beta_end", "beta_schedule"),
}
"""Settings that both models must share, so that a noisy picture means the same to both."""


def open_guide(
    path: str | Path,
    config: Config,
    words: CaptionTokenizer | PretrainedTextEncoder,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Guide, Config]:
    """Open the guide of a model with this (complete) configuration; returns it and its own
    configuration.

    Args:
        path: the guide, as `limner generate` takes a model.
        words: those of the model; the guide shares its pretrained text encoder if both use the
            same.

    Raises:
        LimnerError: there is no such checkpoint, or it was trained in another space.
    """
    opened = open_model(path)
    theirs = opened.config
    if theirs.model.flow_map:
        raise LimnerError(
            f"{path} is a distilled model, which cannot guide; use the model it was made from"
        )
    differences = [
        f"{section}.{key}: {there!r} in the guide, {here!r} in the model"
        for section, keys in SAME_SPACE.items()
        for key in keys
        if (there := getattr(getattr(theirs, section), key))
        != (here := getattr(getattr(config, section), key))
    ]
    if differences:
        raise LimnerError(
            f"{path} cannot guide this model; it was trained in another space:\n"
            + "\n".join(f"  - {d}" for d in differences)
            + (
                "\n"
                "use an earlier checkpoint of the same run, or a smaller model trained in the "
                "same way"
            )
        )
    if opened.tokenizer is not None:
        words = opened.tokenizer
    elif theirs.text_encoder.fingerprint != config.text_encoder.fingerprint:
        # The guide uses the model's autoencoder, which may have been moved.
        reader = open_parts(theirs.model_copy(update={"vae": config.vae})).text_encoder
        assert reader is not None
        reader.load(device, part_precision(dtype))
        words = reader
    model = build_model(theirs, words.text_size)
    opened.load_weights(model, averaged=True)
    guide = Guide(ready(model, device, dtype), build_objective(theirs), words)
    return guide, theirs
