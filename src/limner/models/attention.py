"""Softmax attention with the fastest kernel of the device."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SHORT = 768
"""Keys up to which training on a CPU uses plain matrix products for attention.

They are faster than torch's flash kernel at any length (twice at 600 keys, 1.2 times at 1,000), but
keep all weights for the backward pass. Without a backward pass the kernel is the faster one.
"""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention: q [B, heads, N, D], k and v [B, heads, M, D] -> [B, heads, N, D].

    Args:
        mask: broadcastable to [B, heads, N, M]; bool (False: not attended to), or float, added to
            the scores. Each query must have at least one key to attend to.
    """
    plain = torch.is_grad_enabled() and (mask is None or mask.dtype == torch.bool)
    if not plain or q.device.type != "cpu" or k.shape[2] > SHORT:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return ShortAttention.apply(q, k, v, mask)


class ShortAttention(torch.autograd.Function):
    """Attention by plain matrix products, with the memory-saving backward pass of flash attention.

    With the CPU's flash kernel a training step at 64 tokens takes 1.29 times as long, because of
    its slow backward (benchmarks/step_cost.py): products this short fit the cache. Two ideas are
    from Dao et al. 2022 (arXiv 2205.14135, algorithm 4): the softmax's sum divides the D numbers of
    an output instead of the M of a row, and the backward pass needs the sum of (gradient x output)
    over D instead of one over M, which leaves a single sweep over the scores, without an
    exponential.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        scores = q @ k.mT
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        largest = scores.amax(dim=-1, keepdim=True)
        scaled = (scores.float() - largest.float()) / math.sqrt(q.shape[-1])
        weights = scaled.exp().to(v.dtype)  # not yet divided by their sum
        total = weights.float().sum(dim=-1, keepdim=True)
        out = ((weights @ v).float() / total).to(v.dtype)
        ctx.save_for_backward(q, k, v, weights, total, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, weights, total, out = ctx.saved_tensors
        gradient = gradients[0].float() / total
        of_mean = (gradient * out.float()).sum(dim=-1, keepdim=True)
        gradient = gradient.to(v.dtype)
        of_v = weights.mT @ gradient
        of_weights = (gradient @ v.mT).float() - of_mean
        of_scores = (weights.float() * of_weights / math.sqrt(q.shape[-1])).to(q.dtype)
        return of_scores @ k, of_scores.mT @ q, of_v, None
