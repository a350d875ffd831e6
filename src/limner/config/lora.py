"""Adapters: fine-tuning that leaves the model as it is and learns small corrections beside it."""

from __future__ import annotations

from limner.config.types import BelowOne, Positive, Section, Width


class LoraConfig(Section):
    """Low-rank adaptation (Hu et al. 2021) of the model named in `training.init_from`."""

    rank: Width | None = None
    """Width of the corrections: each adapted matrix W becomes W + alpha / rank * B A, and only A
    [rank, in] and B [out, rank] learn, with AdamW. None: all weights learn."""
    alpha: Positive | None = None
    """Scale of the corrections. None: `rank`, so that the factor is 1."""
    dropout: BelowOne = 0.0
    """Of what goes into A; helps when pictures are very few."""
    train_text_encoder: bool = True
    """The text encoder learns, too, all of it, at a tenth of the rate: new names need that. false:
    it stays as it is, and the adapters are all that changes."""
    target_modules: tuple[str, ...] | None = None
    """Names of the matrices in the transformer blocks that are adapted, such as [qkv, out]. None:
    those of attention and feed-forward."""
