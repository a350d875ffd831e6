"""Inputs of the training loop: images or latents, token ids or text embeddings.

In pixel space with the built-in text encoder there is nothing to compute. Otherwise latents and
text embeddings are looked up in a store by what they were made from, and missing ones are computed
and stored; then the encoders are unloaded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from limner.config import Config
from limner.data.examples import Source
from limner.data.open import Data
from limner.data.precomputed.sources import (
    StoredCaptions,
)
from limner.device import part_precision
from limner.pretrained.autoencoder import PretrainedAutoencoder
from limner.pretrained.components import Parts
from limner.text.tokenizer import CaptionTokenizer
from limner.training.distillation.trajectories import Trajectories, stored_trajectories
from limner.training.precompute import check_cache_folder, stored_captions, stored_latents


@dataclass(frozen=True)
class Inputs:
    """What training examples are made from."""

    trained: Source
    held_out: Source
    words: CaptionTokenizer | StoredCaptions
    trajectories: tuple[Trajectories, Trajectories] | None = None
    """Of a flow map: what it learns from, and what it is measured with."""


def open_inputs(
    config: Config,
    data: Data,
    parts: Parts,
    tokenizer: CaptionTokenizer | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Inputs:
    """Open everything the loop reads; what is not stored yet is computed now.

    Args:
        config: completed by the pretrained parts.
        tokenizer: of the built-in text encoder, if that is used.
        dtype: of training; the encoders compute in bfloat16 if it is bfloat16, else in float32.
    """
    check_cache_folder(config)
    words: CaptionTokenizer | StoredCaptions
    if parts.text_encoder is not None:
        words = stored_captions(config, data, parts.text_encoder, device, part_precision(dtype))
    else:
        assert tokenizer is not None
        words = tokenizer
    if config.model.flow_map:
        reader = parts.text_encoder or tokenizer
        assert reader is not None
        size, downsampling = reader.text_size, parts.autoencoder.downsampling
        drawn = stored_trajectories(config, data, words, size, downsampling, device, dtype)
        return Inputs(data.trained, data.held_out, words, drawn)
    if not isinstance(parts.autoencoder, PretrainedAutoencoder):
        return Inputs(data.trained, data.held_out, words)
    both = stored_latents(config, data, parts.autoencoder, device, part_precision(dtype))
    return Inputs(*both, words)
