"""Settings of LoRA: fine-tuning with low-rank adapters while the model is frozen."""

from __future__ import annotations

from limner.config.types import BelowOne, Positive, Section, Width


class LoraConfig(Section):
    """Low-rank adaptation (Hu et al. 2021) of the model named in `training.init_from`."""

    rank: Width | None = None
    """Rank of the adapters: each adapted matrix W becomes W + alpha / rank * B A, and only A [rank,
    in] and B [out, rank] are trained, with AdamW. None: all weights are trained."""
    alpha: Positive | None = None
    """Scaling of the adapters. None: `rank`, which gives a factor of 1."""
    dropout: BelowOne = 0.0
    """Dropout on the input of A; helps with very few pictures."""
    train_text_encoder: bool = True
    """Also train all parameters of the text encoder, at a tenth of the learning rate; needed to
    learn new names. false: freeze it, and train only the adapters."""
    target_modules: tuple[str, ...] | None = None
    """Names of the matrices in the transformer blocks to adapt, such as [qkv, out]. None: those of
    attention and feed-forward layers."""
