"""The default architecture: a DiT with newer components that learn faster.

RMSNorm (Zhang & Sennrich 2019), queries and keys normalised (Henry et al. 2020), rotary positions
in two dimensions (Su et al. 2021), SwiGLU (Shazeer 2020), one modulation for all blocks plus a
table per block (adaLN-single, PixArt-alpha, Chen et al. 2023), and picture tokens that attend to
[text ; picture] in one softmax while the text stays as it was encoded (PRX, Photoroom 2025): the
words keep their order and number, and their keys and values are computed once per prompt
(`prepare`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.models.attention import attend
from limner.models.dropout import ImageDropout
from limner.models.input_paths import InputPaths
from limner.models.layers import (
    RMSNorm,
    StackedLinear,
    SwiGLU,
    TimestepEmbedder,
    grid_positions,
    patchify,
    run_blocks,
    swiglu_width,
    unpatchify,
    zero_embedder,
)
from limner.text.conditioning import TextConditioning


class ModernBlock(nn.Module):
    def __init__(
        self, width: int, num_heads: int, text_width: int, mlp_ratio: float, dropout: float
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = RMSNorm(width, affine=False)
        self.qkv = StackedLinear(width, width, parts=3)
        self.text_kv = StackedLinear(text_width, width, parts=2)
        self.norm_q = RMSNorm(width // num_heads)
        self.norm_k = RMSNorm(width // num_heads)
        self.out = nn.Linear(width, width, bias=False)
        self.norm_mlp = RMSNorm(width, affine=False)
        self.mlp = SwiGLU(width, swiglu_width(width, mlp_ratio))
        self.modulation = nn.Parameter(torch.zeros(6, width))
        self.dropout = ImageDropout(dropout)

    def forward(
        self, x: Tensor, modulation: Tensor, text: Tensor, mask: Tensor, rotation: Tensor
    ) -> Tensor:
        """x [B, N, D], modulation [B, 6, D], text [B, L, Dt] or what `read` made of it,
        mask [B, 1, 1, L+N], rotation [2, N, head width / 2] -> [B, N, D]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.modulation)[
            :, :, None
        ].unbind(1)
        attended = self.attention(
            self.norm_attention(x) * (1 + scale1) + shift1, text, mask, rotation
        )
        x = x + gate1 * self.dropout(attended)
        fed = self.mlp(self.norm_mlp(x) * (1 + scale2) + shift2)
        return x + gate2 * self.dropout(fed, salt=1)

    def attention(self, x: Tensor, text: Tensor, mask: Tensor, rotation: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = (self.heads(part) for part in self.qkv(x).chunk(3, dim=-1))
        text_k, text_v = self.read(text) if text.dim() == 3 else text.unbind(1)
        q, k = rotate(self.norm_q(q), rotation), rotate(self.norm_k(k), rotation)
        k = torch.cat([text_k.to(k.dtype), k], dim=2)
        v = torch.cat([text_v, v], dim=2)
        attended = attend(q.to(v.dtype), k.to(v.dtype), v, mask)
        return self.out(attended.transpose(1, 2).reshape(b, n, width))

    def read(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Text [B, L, Dt] -> its keys and values, each [B, heads, L, head width]. They do not
        depend on the picture or the timestep, so they are computed once per prompt."""
        k, v = (self.heads(part) for part in self.text_kv(text).chunk(2, dim=-1))
        return self.norm_k(k), v

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class FinalLayer(nn.Module):
    """Tokens [B, N, D] and their condition [B, D] -> patches [B, N, p p C]."""

    def __init__(self, width: int, patch_width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width, affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, patch_width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        return self.linear(self.norm(x) * (1 + scale) + shift)


def rotation_table(height: int, width: int, head_width: int, theta: float = 100.0) -> Tensor:
    """Cosines and sines that turn pairs of a head's features, [2, H*W, head_width / 2].

    Half of the pairs turn with the row, half with the column (axial rotary positions). `theta` is
    small because a picture is 16 units wide: the slowest pair turns about once in 600 units.
    """
    rows, columns = grid_positions(height, width)
    pairs = head_width // 4
    speeds = theta ** (-torch.arange(pairs, dtype=torch.float32) / pairs)
    angles = torch.cat([rows[:, None] * speeds, columns[:, None] * speeds], dim=-1)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn feature pairs (i, i + half) of x [B, heads, N, head width] by the table's angles."""
    cosines, sines = rotation
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cosines - b * sines, a * sines + b * cosines], dim=-1).to(x.dtype)


class ModernDiT(nn.Module):
    """The default denoiser: `model(x, t, y)` with noisy pictures, timesteps, and texts.

    Args:
        flow_map: it is told the length of its step, too (see `limner.diffusion.flow_map`).
        guidance_embeds: a flow map that is told the guidance scale, too.
    """

    def __init__(
        self,
        in_channels: int,
        patch_size: int,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        mlp_ratio: float,
        dropout: float,
        text_width: int,
        flow_map: bool = False,
        guidance_embeds: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.gradient_checkpointing = False
        self.head_width = hidden_size // num_heads
        self.hidden_size = hidden_size
        patch_width = in_channels * patch_size**2
        self.patch_embedding = nn.Linear(patch_width, hidden_size)
        self.time_embedding = TimestepEmbedder(hidden_size)
        self.text_vector = nn.Linear(text_width, hidden_size)
        self.modulation = nn.Linear(hidden_size, 6 * hidden_size)
        self.blocks = nn.ModuleList(
            ModernBlock(hidden_size, num_heads, text_width, mlp_ratio, dropout)
            for _ in range(num_layers)
        )
        self.final_layer = FinalLayer(hidden_size, patch_width)
        self.tables: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor]] = {}
        # Every block starts as the identity and the whole as zero (adaLN-Zero): early training is
        # then a plain regression onto the mean, stable at any learning rate.
        for layer in (self.modulation, self.final_layer.modulation, self.final_layer.linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.span_embedding = zero_embedder(hidden_size) if flow_map else None
        self.input_paths = InputPaths(hidden_size, in_channels, patch_width) if flow_map else None
        self.guidance_embedding = zero_embedder(hidden_size) if guidance_embeds else None

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: TextConditioning,
        span: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """x [B, C, H, W] noisy pictures, t [B] timesteps (0 clean .. 1000 noise), y their texts,
        of a flow map span [B], the length of the step (None: 0), and guidance [B], the scale (None:
        1), if it is told that -> [B, C, H, W], the prediction."""
        patches = patchify(x, self.patch_size)
        time = self.embedded(t, span, guidance)
        tokens, condition, others = self.begin(x, patches, time, y)
        if y.keys_values is None:
            recompute = self.gradient_checkpointing
            tokens = run_blocks(self.blocks, tokens, *others(y.tokens), recompute=recompute)
        else:
            for block, text in zip(self.blocks, y.keys_values.unbind(1), strict=True):
                tokens = block(tokens, *others(text))
        tokens = self.final_layer(tokens, condition)
        if self.input_paths is None:
            return unpatchify(tokens, self.patch_size, x.shape[-2], x.shape[-1])
        tokens = tokens + self.input_paths.past_the_blocks(patches, time)
        output = unpatchify(tokens, self.patch_size, x.shape[-2], x.shape[-1])
        return output + self.input_paths.shared(x, time)

    def embedded(
        self, t: Tensor, span: Tensor | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        """Timesteps, spans, and guidance scales [B] -> [B, D]."""
        time = self.time_embedding(t)
        if self.span_embedding is not None:
            time = time + self.span_embedding(torch.zeros_like(t) if span is None else span)
        if self.guidance_embedding is not None:
            scale = torch.ones_like(t) if guidance is None else guidance
            time = time + self.guidance_embedding(scale)
        return time

    def begin(
        self, x: Tensor, patches: Tensor, time: Tensor, y: TextConditioning
    ) -> tuple[Tensor, Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
        """What the blocks get: tokens [B, N, D], condition [B, D], and by its text a block's other
        arguments."""
        height, width = x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size
        positions, rotation = self.positions(height, width, x.device)
        embedded = self.patch_embedding(patches)
        tokens = embedded + positions
        if self.input_paths is not None:
            tokens = tokens + self.input_paths.read(embedded, patches, time)
        text = self.text_vector(y.pooled()) if y.condition is None else y.condition
        condition = F.silu(time + text)
        modulation = self.modulation(condition).unflatten(-1, (6, -1))
        mask = attention_mask(y, height * width)
        return tokens, condition, lambda text: (modulation, text, mask, rotation)

    def first_blocks(self, x: Tensor, t: Tensor, y: TextConditioning, count: int) -> Tensor:
        """The tokens [B, N, D] after `count` blocks."""
        patches = patchify(x, self.patch_size)
        tokens, _, others = self.begin(x, patches, self.embedded(t), y)
        return run_blocks(self.blocks[:count], tokens, *others(y.tokens), recompute=False)

    @property
    def is_flow_map(self) -> bool:
        return self.span_embedding is not None

    @property
    def takes_guidance(self) -> bool:
        return self.guidance_embedding is not None

    def prepare(self, y: TextConditioning) -> TextConditioning:
        """Precompute everything that depends only on the texts, once for all steps of a solver.

        `self(x, t, prepare(y))` is `self(x, t, y)` to the bit.
        """
        blocks = (block for block in self.blocks if isinstance(block, ModernBlock))
        pairs = [torch.stack(block.read(y.tokens), dim=1) for block in blocks]
        condition = self.text_vector(y.pooled())
        return y._replace(keys_values=torch.stack(pairs, dim=1), condition=condition)

    def positions(self, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Absolute sin-cos positions [N, D], added once (rotary ones are only relative, and these
        tell corners from the start, as in JiT), and the rotary table; kept per grid."""
        key = (height, width, device)
        if key not in self.tables:
            absolute = sincos_positions(height, width, self.hidden_size)
            rotation = rotation_table(height, width, self.head_width)
            self.tables[key] = absolute.to(device), rotation.to(device)
        return self.tables[key]


def attention_mask(y: TextConditioning, count: int) -> Tensor:
    """Mask of what `count` picture tokens attend to, [B, 1, 1, L + count]: bool, or float to add to
    the scores if text tokens have weights."""
    mask = F.pad(y.mask, (0, count), value=True)[:, None, None]
    if y.log_weight is None:
        return mask
    return F.pad(y.log_weight, (0, count))[:, None, None].masked_fill(~mask, -math.inf)


def sincos_positions(height: int, width: int, hidden_size: int) -> Tensor:
    """Fixed sin-cos positions in two dimensions, [H*W, D], as in ViT and DiT."""
    rows, columns = grid_positions(height, width)
    quarter = hidden_size // 4
    speeds = 1 / 10_000 ** (torch.arange(quarter, dtype=torch.float32) / quarter)
    waves = [
        wave(axis[:, None] * speeds) for axis in (columns, rows) for wave in (torch.sin, torch.cos)
    ]
    table = torch.cat(waves, dim=-1)
    return F.pad(table, (0, hidden_size - table.shape[-1])) / math.sqrt(2)
