"""Settings of the model: the transformer, text encoder, and autoencoder."""

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
MOST_TOKENS = 16_384
"""Of a caption."""


class ModelConfig(Section):
    architecture: Annotated[Literal["modern", "dit"], BeforeValidator(lower)] = "modern"
    """`modern` (RMSNorm, rotary position embeddings, SwiGLU, joint attention over text and picture
    tokens) or `dit` (Peebles & Xie 2022 as published: adaLN-Zero, text as a single vector)."""
    hidden_size: Width = 384
    """Width of the transformer."""
    num_layers: Depth = 8
    """Number of transformer blocks."""
    num_heads: Channels = 6
    """Number of attention heads; must divide `hidden_size`."""
    attention_head_dim: Width | None = None
    """Width of an attention head (`hidden_size` / `num_heads`), for configurations that specify it.
    Together with one of the two it determines the other."""
    patch_size: Side | None = None
    """Side of a patch in pixels (or latents). None: the size that gives 16 x 16 tokens."""
    in_channels: Channels | None = None
    """Input channels. None: 3 (RGB), or the channels of the latents."""
    out_channels: Channels | None = None
    """Output channels. None: same as `in_channels`."""
    mlp_ratio: Annotated[Positive, Field(le=64)] = 4.0
    """Width of the feed-forward layer relative to `hidden_size` (SwiGLU uses 2/3 of it, for equal
    cost)."""
    dropout: BelowOne = 0.0
    """Dropout after attention and feed-forward layers; helps with few pictures and many epochs."""
    flow_map: bool = False
    """The network is told how long a step is, so that it can draw in one or two: what `limner
    distill` makes of the model in `training.init_from`."""
    activation_fn: ActivationFunction | None = None
    """Accepted for compatibility; a note is shown if the architecture uses another one: `modern`
    uses `swiglu`, `dit` uses `gelu-approximate`."""
    norm_eps: Positive | None = None
    """Accepted for compatibility: both architectures use 1e-6."""
    attention_bias: bool | None = None
    """Accepted for compatibility: the attention of `dit` has biases, that of `modern` has none."""


class VaeConfig(Section):
    pretrained_model_name: str | None = None
    """Autoencoder, for training in latent space (a folder or a Hub id). None: train in pixel
    space."""
    use_slicing: bool = False
    """Encode and decode one picture at a time to save memory; results are the same."""
    use_tiling: bool = False
    """Process large pictures in strips to save device memory; results are the same."""
    fingerprint: str | None = None
    """Hash of its weights, saved in checkpoints. Other weights are rejected."""


class TextEncoderConfig(Section):
    pretrained_model_name: str | None = None
    """Pretrained text encoder (a folder or a Hub id). None: the built-in one, trained jointly with
    the model."""
    vocab_size: Annotated[Whole, Field(ge=300, le=1_048_576)] = 4096
    """Largest vocabulary of the byte-level BPE tokenizer, trained on the captions (256 of the
    tokens are bytes)."""
    hidden_size: Width | None = None
    """Width of the built-in encoder. None: same as the model, at most 384."""
    num_layers: Depth = 2
    """Number of transformer blocks of the built-in encoder."""
    max_length: Annotated[PositiveInt, Field(le=MOST_TOKENS)] | None = None
    """Maximum tokens per caption; longer captions are truncated, and the run reports how many.
    None: 32, or for a pretrained encoder 128 or its own limit if lower (CLIP: 77)."""
    fingerprint: str | None = None
    """Hash of the weights of a pretrained encoder, saved and checked like that of the
    autoencoder."""


class AutoencoderConfig(Section):
    """Settings of `limner train-autoencoder`. It also uses `data`, `optimizer.type`, and from
    `training` the seed, device, precision, `save_steps`, and `save_errors`."""

    latent_channels: Channels = 4
    """Channels of the latents. More reconstruct pictures better and are harder to generate."""
    downsampling: Literal[2, 4, 8, 16] = 4
    """Downsampling factor in each direction: pixels per latent."""
    base_channels: Annotated[Whole, Field(ge=8, le=4_096, multiple_of=8)] = 16
    """Channels at full resolution, doubled at each downsampling. Most of the compute is spent
    there."""
    layers_per_block: Depth = 1
    """Residual blocks per resolution."""
    crop: Side = 64
    """Side of the random square training crops, in pixels."""
    batch_size: Batch = 16
    """Crops per update."""
    learning_rate: Positive = 2e-3
    """Peak learning rate of Muon (convolutions) and AdamW (all other parameters, or all of
    them)."""
    max_minutes: Positive = 15.0
    """Time limit in minutes; the learning rate decays to zero over the last 40 % of it."""
    max_steps: PositiveInt | None = None
    """Maximum number of updates."""
    kl_weight: NonNegative = 1e-4
    """Weight of the KL divergence of the latents from a normal distribution, per latent value."""
    edge_weight: NonNegative = 0.25
    """Weight of the error of differences between neighbouring pixels at three scales, relative to
    the pixel error."""
