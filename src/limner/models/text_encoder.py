"""The built-in text encoder: a small bidirectional transformer, trained together with the model.

It needs no download and reads any language, because its tokens are bytes and merges learned from
the captions (see `limner.text.tokenizer`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limner.models.attention import attend
from limner.models.layers import RMSNorm, StackedLinear, SwiGLU, swiglu_width
from limner.text.conditioning import TextConditioning

PAD = 0
"""Token id of padding; every caption starts with <start>, so none is all padding."""


class TextBlock(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = RMSNorm(width)
        self.qkv = StackedLinear(width, width, parts=3)
        self.out = nn.Linear(width, width, bias=False)
        self.norm_mlp = RMSNorm(width)
        self.mlp = SwiGLU(width, swiglu_width(width, 4.0))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.mlp.out.weight)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, length, width = x.shape
        q, k, v = (
            part.reshape(b, length, self.num_heads, -1).transpose(1, 2)
            for part in self.qkv(self.norm_attention(x)).chunk(3, dim=-1)
        )
        attended = attend(q, k, v, mask[:, None, None, :])
        x = x + self.out(attended.transpose(1, 2).reshape(b, length, width))
        return x + self.mlp(self.norm_mlp(x))


class TextEncoder(nn.Module):
    """Token ids [B, L] (padding = 0) -> TextConditioning with tokens [B, L, width]."""

    def __init__(self, vocab_size: int, max_length: int, width: int, num_layers: int) -> None:
        super().__init__()
        self.max_length = max_length
        self.embedding = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.zeros(max_length, width))
        self.blocks = nn.ModuleList(TextBlock(width, width // 64) for _ in range(num_layers))
        self.norm = RMSNorm(width)
        nn.init.normal_(self.embedding.weight, std=0.5)
        nn.init.normal_(self.positions, std=0.1)

    def forward(self, ids: Tensor) -> TextConditioning:
        mask = ids != PAD
        x = self.embedding(ids) + self.positions[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        return TextConditioning(self.norm(x), mask)
