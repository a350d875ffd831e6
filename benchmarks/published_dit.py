"""The published class-conditional DiT and its training step, reimplemented as a speed baseline.

After Peebles & Xie 2022 and the structure of their code (models.py, train.py): timm's attention
(one qkv product, torch's scaled_dot_product_attention) and feed-forward, a label embedding, learned
variance with its variational bound beside the squared error (Nichol & Dhariwal 2021), AdamW, and
an EMA of the weights, updated parameter by parameter. Nothing is shared with Limner's own model.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 1000


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gelu = nn.GELU(approximate="tanh")
        self.adaln = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaln(c).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attention(modulate(self.norm1(x), shift1, scale1))
        fed = self.fc2(self.gelu(self.fc1(modulate(self.norm2(x), shift2, scale2))))
        return x + gate2.unsqueeze(1) * fed

    def attention(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, width))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class PublishedDiT(nn.Module):
    def __init__(
        self, size: int, patch: int, channels: int, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.patch, self.channels = patch, 2 * channels
        self.x_embedder = nn.Conv2d(channels, width, patch, patch)
        self.positions = nn.Parameter(
            torch.randn(1, (size // patch) ** 2, width) * 0.02, requires_grad=False
        )
        self.t_embedder = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.y_embedder = nn.Embedding(CLASSES + 1, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.last_adaln = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.last = nn.Linear(width, patch * patch * self.channels)
        for module in (*self.blocks, self):
            layers = [module.adaln] if isinstance(module, Block) else [self.last_adaln]
            for layer in layers:
                nn.init.zeros_(layer[1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        b, _, height, width = x.shape
        x = self.x_embedder(x).flatten(2).transpose(1, 2) + self.positions
        c = self.t_embedder(sinusoids(t)) + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.last_adaln(c).chunk(2, dim=1)
        x = self.last(modulate(self.norm(x), shift, scale))
        p = self.patch
        x = x.reshape(b, height // p, width // p, p, p, self.channels)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(b, self.channels, height, width)


def sinusoids(t: Tensor) -> Tensor:
    speeds = torch.exp(-math.log(10_000) * torch.arange(128, device=t.device) / 128)
    angles = t[:, None].float() * speeds
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class PublishedTraining:
    """`step(x, y)`: noise, prediction, both losses, backward, AdamW, average.

    Args:
        autocast: bfloat16 for the model (the published code has none; its users add it).
    """

    def __init__(self, model: PublishedDiT, autocast: bool, compiled: bool) -> None:
        self.model, self.autocast = model, autocast
        self.run = torch.compile(model) if compiled else model
        self.average = copy.deepcopy(model).requires_grad_(False)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0)
        device = next(model.parameters()).device
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        kept = (1 - betas).cumprod(0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
        posterior = betas * (1 - before) / (1 - kept)
        table = {
            "signal": kept.sqrt(),
            "noise": (1 - kept).sqrt(),
            "log_beta": betas.log(),
            "log_posterior": torch.cat([posterior[1:2], posterior[1:]]).log(),
            "of_start": betas * before.sqrt() / (1 - kept),
            "of_noisy": (1 - before) * (1 - betas).sqrt() / (1 - kept),
        }
        self.table = {name: values.float().to(device) for name, values in table.items()}

    def step(self, x: Tensor, y: Tensor) -> float:
        self.model.train()
        t = torch.randint(0, 1000, (len(x),), device=x.device)
        noise = torch.randn_like(x)
        at = {name: values[t][:, None, None, None] for name, values in self.table.items()}
        x_t = at["signal"] * x + at["noise"] * noise
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            output = self.run(x_t, t, y)
        epsilon, between = output.float().chunk(2, dim=1)
        loss = (noise - epsilon).square().mean() + self.bound(x, x_t, epsilon.detach(), between, at)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
            for averaged, parameter in pairs:
                averaged.mul_(0.9999).add_(parameter, alpha=1 - 0.9999)
        return float(loss)

    def bound(
        self, x: Tensor, x_t: Tensor, epsilon: Tensor, between: Tensor, at: dict[str, Tensor]
    ) -> Tensor:
        """The divergence of the predicted step from the true one, for the learned variance."""
        start = (x_t - at["noise"] * epsilon) / at["signal"]
        mean = at["of_start"] * start + at["of_noisy"] * x_t
        truth = at["of_start"] * x + at["of_noisy"] * x_t
        share = (between + 1) / 2
        log_variance = share * at["log_beta"] + (1 - share) * at["log_posterior"]
        difference = at["log_posterior"] - log_variance
        divergence = 0.5 * (
            -1.0
            - difference
            + difference.exp()
            + (truth - mean).square() * torch.exp(-log_variance)
        )
        return divergence.mean() / math.log(2.0)
