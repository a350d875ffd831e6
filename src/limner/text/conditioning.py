"""Text conditioning of the denoiser: a vector per token, and a pooled one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class TextConditioning(NamedTuple):
    """Encoded captions, as input of the denoiser."""

    tokens: Tensor
    """[B, L, D], one state per token."""
    mask: Tensor
    """[B, L] bool, False at padding."""
    vector: Tensor | None = None
    """[B, D], the encoder's pooled output per caption, if it has one."""
    log_weight: Tensor | None = None
    """[B, L], log attention weight of each token; None: all equal."""
    keys_values: Tensor | None = None
    """[B, blocks, 2, heads, L, head width], once `denoiser.prepare` has computed them."""
    condition: Tensor | None = None
    """[B, D'], the pooled text that the denoiser adds to the timestep embedding, also
    precomputed."""

    def pooled(self) -> Tensor:
        """Each caption as one vector [B, D]: the encoder's, else the mean state."""
        if self.vector is not None:
            return self.vector
        weight = self.mask[..., None].to(self.tokens.dtype)
        if self.log_weight is not None:
            weight = weight * self.log_weight[..., None].exp()
        return (self.tokens * weight).sum(dim=1) / weight.sum(dim=1)

    def rows(self, which: slice | Tensor) -> TextConditioning:
        """Some of the captions, by their indices."""
        return TextConditioning._make(None if part is None else part[which] for part in self)

    def followed_by(self, other: TextConditioning) -> TextConditioning:
        """These captions, followed by another one repeated as often (or by as many others)."""
        return TextConditioning._make(
            None if own is None or its is None else torch.cat([own, its.expand_as(own)])
            for own, its in zip(self, other, strict=True)
        )
