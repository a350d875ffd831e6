"""The Diffusion Transformer (DiT) as published by Peebles & Xie 2022, as a baseline.

adaLN-Zero blocks, LayerNorm, GELU, fixed sin-cos positions. Its class embedding is replaced by the
pooled text, the only text input. Parameters have the published names.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.models.attention import attend
from limner.models.dropout import ImageDropout
from limner.models.input_paths import InputPaths
from limner.models.layers import (
    TimestepEmbedder,
    patchify,
    run_blocks,
    unpatchify,
    zero_embedder,
)
from limner.text.conditioning import TextConditioning


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        attended = attend(q, k, v)
        return self.proj(attended.transpose(1, 2).reshape(b, n, width))


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form (Hendrycks & Gimpel 2016), as published: 0.5 x (1 + tanh(u)).

    When compiled, it is the equal x sigmoid(2u), which a CPU computes in half the time.
    """
    if not torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    wide = x.float()
    u = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
    return (wide * torch.sigmoid(2 * u)).to(x.dtype)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x)))


class DiTBlock(nn.Module):
    """A transformer block whose norms are shifted, scaled, and gated by the condition (adaLN-Zero,
    figure 3 of the paper)."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.dropout = ImageDropout(dropout)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x [B, N, D], condition c [B, D] -> [B, N, D]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        attended = self.attn(modulate(self.norm1(x), shift1, scale1))
        x = x + gate1[:, None] * self.dropout(attended)
        fed = self.mlp(modulate(self.norm2(x), shift2, scale2))
        return x + gate2[:, None] * self.dropout(fed, salt=1)


class FinalLayer(nn.Module):
    def __init__(self, width: int, patch_size: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, patch_size**2 * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class PatchEmbed(nn.Module):
    def __init__(self, in_channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class DiT(nn.Module):
    """The DiT denoiser: `model(x, t, y)` with noisy pictures, timesteps, and texts.

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
        out_channels: int | None = None,
        flow_map: bool = False,
        guidance_embeds: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.gradient_checkpointing = False
        self.hidden_size = hidden_size
        self.x_embedder = PatchEmbed(in_channels, patch_size, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = nn.Linear(text_width, hidden_size)
        self.blocks = nn.ModuleList(
            DiTBlock(hidden_size, num_heads, mlp_ratio, dropout) for _ in range(num_layers)
        )
        self.final_layer = FinalLayer(hidden_size, patch_size, out_channels or in_channels)
        self.tables: dict[tuple[int, int, torch.device], Tensor] = {}
        self.initialise()
        self.span_embedder = zero_embedder(hidden_size) if flow_map else None
        patch_width = in_channels * patch_size**2
        self.input_paths = InputPaths(hidden_size, in_channels, patch_width) if flow_map else None
        self.guidance_embedder = zero_embedder(hidden_size) if guidance_embeds else None

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
        time = self.t_embedder(t)
        if self.span_embedder is None:
            return self.predict(x, time + self.y_embedder(y.pooled()))
        time = time + self.span_embedder(torch.zeros_like(t) if span is None else span)
        if self.guidance_embedder is not None:
            scale = torch.ones_like(t) if guidance is None else guidance
            time = time + self.guidance_embedder(scale)
        return self.predict(x, time + self.y_embedder(y.pooled()), time)

    @property
    def is_flow_map(self) -> bool:
        return self.span_embedder is not None

    @property
    def takes_guidance(self) -> bool:
        return self.guidance_embedder is not None

    def predict(self, x: Tensor, c: Tensor, time: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], condition c [B, D] -> [B, out channels, H, W].

        Args:
            time: of a flow map: the embedded time, span, and guidance alone, [B, D].
        """
        paths, patches = self.input_paths, patchify(x, self.patch_size)
        embedded = self.x_embedder(x)
        tokens = embedded + self.positions(x.shape[-2], x.shape[-1], x.device)
        if paths is not None and time is not None:
            tokens = tokens + paths.read(embedded, patches, time)
        tokens = run_blocks(self.blocks, tokens, c, recompute=self.gradient_checkpointing)
        tokens = self.final_layer(tokens, c)
        if paths is not None and time is not None:
            tokens = tokens + paths.past_the_blocks(patches, time)
        output = unpatchify(tokens, self.patch_size, x.shape[-2], x.shape[-1])
        return output if paths is None or time is None else output + paths.shared(x, time)

    def first_blocks(self, x: Tensor, t: Tensor, y: TextConditioning, count: int) -> Tensor:
        """The tokens [B, N, D] after `count` blocks."""
        c = self.t_embedder(t) + self.y_embedder(y.pooled())
        tokens = self.x_embedder(x) + self.positions(x.shape[-2], x.shape[-1], x.device)
        return run_blocks(self.blocks[:count], tokens, c, recompute=False)

    def prepare(self, y: TextConditioning) -> TextConditioning:
        """Return the texts unchanged: precomputing would save only one small matrix product."""
        return y

    def positions(self, height: int, width: int, device: torch.device) -> Tensor:
        key = (height, width, device)
        if key not in self.tables:
            p = self.patch_size
            self.tables[key] = published_positions(height // p, width // p, self.hidden_size).to(
                device
            )
        return self.tables[key]

    def initialise(self) -> None:
        """As published: Xavier for the layers, zero for every modulation and the last layer."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and "t_embedder" not in name:
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.y_embedder.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, DiTBlock | FinalLayer):
                for parameter in module.adaLN_modulation.parameters():
                    nn.init.zeros_(parameter)
        nn.init.zeros_(self.final_layer.linear.weight)
        nn.init.zeros_(self.final_layer.linear.bias)


def published_positions(height: int, width: int, hidden_size: int) -> Tensor:
    """Sin-cos positions as the published code makes them, float64 inside: [H*W, D].

    The first half of the features carries the column, the second the row.
    """
    quarter = hidden_size // 4
    speeds = 1 / 10_000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    columns = torch.arange(width, dtype=torch.float64).repeat(height)
    rows = torch.arange(height, dtype=torch.float64).repeat_interleave(width)
    waves = [
        wave(axis[:, None] * speeds) for axis in (columns, rows) for wave in (torch.sin, torch.cos)
    ]
    return torch.cat(waves, dim=-1).float()
