"""Layers shared by both architectures."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_blocks(blocks: nn.ModuleList, x: Tensor, *others: Tensor, recompute: bool) -> Tensor:
    """Run x through the blocks, passing the other arguments to each.

    With `recompute`, only the inputs of each block are kept for the backward pass, which recomputes
    the rest (Chen et al. 2016, arXiv 1604.06174).
    """
    recompute = recompute and torch.is_grad_enabled()
    for block in blocks:
        x = checkpoint(block, x, *others, use_reentrant=False) if recompute else block(x, *others)
    return x


class StackedLinear(nn.Linear):
    """Several bias-free projections of one input in a single product, such as query, key, value.

    `parts` tells Muon to orthogonalise each of them separately.
    """

    def __init__(self, in_features: int, out_features: int, parts: int) -> None:
        super().__init__(in_features, parts * out_features, bias=False)
        self.parts = parts


class RMSNorm(nn.RMSNorm):
    """Root mean square normalisation (Zhang & Sennrich 2019), computed in float32 for any input."""

    def __init__(self, width: int, affine: bool = True) -> None:
        super().__init__(width, eps=1e-6, elementwise_affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        # In a sharded model the weight arrives in the precision of the blocks.
        weight = None if self.weight is None else self.weight.float()
        normed = nn.functional.rms_norm(x.float(), self.normalized_shape, weight, self.eps)
        return normed.to(x.dtype)


class SwiGLU(nn.Module):
    """Feed-forward with a gate (Shazeer 2020, equation 6); `hidden` is the width inside."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_and_value = StackedLinear(width, hidden, parts=2)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        return self.out(nn.functional.silu(gate) * value)


def swiglu_width(width: int, mlp_ratio: float) -> int:
    """Two thirds of the plain width (three matrices instead of two), in whole 32s for speed."""
    return max(32, round(width * mlp_ratio * 2 / 3 / 32) * 32)


class TimestepEmbedder(nn.Module):
    """Timesteps -> vectors: sinusoids through a two-layer network (DiT, Peebles & Xie 2022)."""

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        first, last = nn.Linear(frequencies, width), nn.Linear(width, width)
        self.mlp = nn.Sequential(first, nn.SiLU(), last)
        for layer in (first, last):  # as published
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, timesteps: Tensor) -> Tensor:
        """Timesteps [B], 0 (clean) to 1000 (noise), whole or not -> [B, width]."""
        return self.mlp(sinusoids(timesteps, self.frequencies))


def zero_embedder(width: int) -> TimestepEmbedder:
    """Of what a flow map is told beside the time: how long its step is, in timesteps, and perhaps
    the guidance scale, as it is (the fastest of the sinusoids turns once in 6.3, so that
    neighbouring scales mean nearly the same). Zero at first, so that the network predicts what it
    did without."""
    embedder = TimestepEmbedder(width)
    nn.init.zeros_(embedder.mlp[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(embedder.mlp[-1].bias)  # type: ignore[arg-type]
    return embedder


def sinusoids(values: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Cosines, then sines, of geometrically spaced frequencies: [...] -> [..., width] float32."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = values.float()[..., None] * torch.exp(-math.log(max_period) * steps)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def grid_positions(height: int, width: int, extent: float = 16.0) -> tuple[Tensor, Tensor]:
    """Row and column of every patch, row by row, each [height * width].

    The longer side is `extent` units at any size, so that a model asked for another size sees the
    same composition and not a larger canvas.
    """
    unit = extent / max(height, width)
    rows = (torch.arange(height, dtype=torch.float32) + 0.5) * unit
    columns = (torch.arange(width, dtype=torch.float32) + 0.5) * unit
    return rows.repeat_interleave(width), columns.repeat(height)


def patchify(x: Tensor, patch_size: int) -> Tensor:
    """[B, C, H, W] -> [B, (H/p)(W/p), C p p], channels outermost, as in a convolution's weight."""
    b, c, h, w = x.shape
    p = patch_size
    x = x.reshape(b, c, h // p, p, w // p, p)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // p) * (w // p), c * p * p)


def unpatchify(tokens: Tensor, patch_size: int, height: int, width: int) -> Tensor:
    """[B, (H/p)(W/p), p p C], channels innermost, as in DiT's last layer -> [B, C, H, W]."""
    b, p = tokens.shape[0], patch_size
    x = tokens.reshape(b, height // p, width // p, p, p, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, height, width)
