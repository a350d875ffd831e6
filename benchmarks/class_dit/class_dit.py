"""The published class-conditional Diffusion Transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limner.models.dit import DiT


class LabelEmbedder(nn.Module):
    """Class labels [B] -> vectors [B, D]; the last row of the table stands for "no class"."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


class ClassDiT(DiT):
    """DiT of Peebles & Xie 2022 on ImageNet: the architecture `dit`, with labels for texts.

    It predicts the noise, and beside it where the logarithm of the step's variance lies between
    its bounds (Nichol & Dhariwal 2021, arXiv 2102.09672, equation 15): twice the channels.
    """

    def __init__(
        self,
        in_channels: int,
        patch_size: int,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        mlp_ratio: float,
        num_classes: int,
    ) -> None:
        super().__init__(
            in_channels,
            patch_size,
            hidden_size,
            num_layers,
            num_heads,
            mlp_ratio,
            dropout=0.0,
            text_width=1,
            out_channels=2 * in_channels,
        )
        self.num_classes = num_classes
        self.y_embedder = LabelEmbedder(num_classes, hidden_size)  # type: ignore[assignment]

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        """x [B, C, H, W] noisy latents, t [B] timesteps, y [B] int64 labels, `num_classes` for none
        -> [B, 2C, H, W]: the noise, then the variance's place, -1 (lowest) to 1 (highest)."""
        return self.predict(x, self.t_embedder(t) + self.y_embedder(y))

    def guided(self, x: Tensor, t: Tensor, y: Tensor, scale: float, channels: int) -> Tensor:
        """The same with classifier-free guidance (Ho & Salimans 2022) of the first channels.

        The published code guides three channels, as the pixel models before it had, although its
        latents have four; what it publishes was drawn so.

        Args:
            scale: 1: none.
            channels: how many of the noise's channels are guided.
        """
        if scale == 1:
            return self(x, t, y)
        nothing = torch.full_like(y, self.num_classes)
        output, null = self(
            torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, nothing])
        ).chunk(2)  # fmt: skip
        noise = null[:, :channels] + scale * (output[:, :channels] - null[:, :channels])
        return torch.cat([noise, output[:, channels:]], dim=1)
