"""What learns: the transformer, and the parts that come from elsewhere."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from limner.config.types import (
    Batch,
    BelowOne,
    Channels,
    Depth,
    NonNegative,
    Positive,
    PositiveInt,
    Section,
    Side,
    Whole,
    Width,
    lower,
)

ActivationFunction = Literal[
    "gelu", "gelu-approximate", "gelu_new", "geglu", "geglu-approximate",
    "swiglu", "silu", "swish", "relu",
]  # fmt: skip
"""As diffusers and transformers name them."""


class ModelConfig(Section):
    architecture: Annotated[Literal["modern", "dit"], BeforeValidator(lower)] = "modern"
    """`modern` (RMSNorm, rotary positions, SwiGLU, attends to text tokens) or `dit` (Peebles &
    Xie 2022 as published: adaLN-Zero, the text as one vector)."""
    hidden_size: Width = 384
    """Width of the transformer."""
    num_layers: Depth = 8
    """Transformer blocks."""
    num_heads: Channels = 6
    """Attention heads; they divide `hidden_size` between them."""
    attention_head_dim: Width | None = None
    """Width of a head, for configurations that say it: `hidden_size` over `num_heads`. Given with
    one of the two, it decides the other."""
    patch_size: Side | None = None
    """Side of a patch in pixels (or latents); None: the one that gives 16 x 16 tokens."""
    in_channels: Channels | None = None
    """Channels of what is denoised; None: 3, the colours of a picture."""
    out_channels: Channels | None = None
    """Channels predicted; None: as many as `in_channels`."""
    mlp_ratio: Annotated[Positive, Field(le=64)] = 4.0
    """Width of the feed-forward part over `hidden_size` (SwiGLU takes 2/3 of it: equal cost)."""
    dropout: BelowOne = 0.0
    """Dropout after attention and feed-forward; helps when pictures are few and passes many."""
    activation_fn: ActivationFunction | None = None
    """Accepted from configurations that name it, with a note where the architecture has another:
    `modern` is built with `swiglu`, `dit` with `gelu-approximate`."""
    norm_eps: Positive | None = None
    """Accepted likewise: both architectures have 1e-6."""
    attention_bias: bool | None = None
    """Accepted likewise: `dit` has biases in its attention, `modern` has none."""


class VaeConfig(Section):
    pretrained_model_name: str | None = None
    """Autoencoder for latent space; None: pixel space."""
    use_slicing: bool = False
    """Encode and decode one picture at a time to save memory; the pictures are the same."""
    use_tiling: bool = False
    """Work on big pictures strip by strip to save device memory; the pictures are the same."""
    fingerprint: str | None = None
    """Hash of its weights. A checkpoint's configuration holds it, and other weights are refused."""


class TextEncoderConfig(Section):
    pretrained_model_name: str | None = None
    """Pretrained text encoder; None: the built-in one, trained together with the model."""
    vocab_size: Annotated[Whole, Field(ge=300, le=1_048_576)] = 4096
    """Byte-level BPE tokens learned from the captions, at most (256 of them are the bytes)."""
    hidden_size: Width | None = None
    """Width of the built-in encoder; None: that of the model, at most 384."""
    num_layers: Depth = 2
    """Transformer blocks of the built-in encoder."""
    max_length: Annotated[PositiveInt, Field(le=16_384)] | None = None
    """Tokens per caption; longer ones are cut, and counted at the start of the run. None: 32, or
    for a pretrained encoder 128 and at most what it can read (CLIP: 77)."""
    fingerprint: str | None = None
    """Hash of a pretrained one's weights, kept and checked as that of the autoencoder is."""


class AutoencoderConfig(Section):
    """Of `limner train-autoencoder`; `data`, `optimizer.type`, and of `training` the seed, device,
    precision, `save_steps`, and `save_errors` are as for training."""

    latent_channels: Channels = 4
    """Numbers per latent. More are closer to the picture and harder to draw."""
    downsampling: Literal[2, 4, 8, 16] = 4
    """Pixels per latent, in each direction."""
    base_channels: Annotated[Whole, Field(ge=8, le=4_096, multiple_of=8)] = 16
    """Channels at full size; twice as many at each halving. Most of the time goes there."""
    layers_per_block: Depth = 1
    """Residual blocks per size."""
    crop: Side = 64
    """Side of the squares cut from pictures to learn from, pixels."""
    batch_size: Batch = 16
    """Squares per update."""
    learning_rate: Positive = 2e-3
    """Peak learning rate of Muon (convolutions) and AdamW (the rest, or all)."""
    max_minutes: Positive = 15.0
    """Wall-clock bound; the rate falls to zero over the last 40 % of it."""
    max_steps: PositiveInt | None = None
    """Updates at most."""
    kl_weight: NonNegative = 1e-4
    """Of the KL divergence of the latents from a normal distribution, per latent number."""
    edge_weight: NonNegative = 0.25
    """Of the error of differences between neighbours, at three scales, beside that of pixels."""
