"""Inception-v3 as used for FID: the TensorFlow graph of 2015-12-05, ported to PyTorch.

Szegedy et al. 2015 (arXiv 1512.00567). This is not torchvision's Inception-v3: it has 1008 classes,
average pooling that excludes the padding, and max pooling in the last block. Parameter names are
those of `pt_inception-2015-12-05-6726825d.pth`, which contains the weights of that graph and is
what published FID, KID, and Inception scores use.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""SHA-256 of pt_inception-2015-12-05-6726825d.pth."""
SIDE = 299
WIDTH = 2048
"""Features per image."""
CLASSES = 1008

Size = int | tuple[int, int]


class Convolution(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(
        self, channels: int, out: int, kernel: Size, stride: int = 1, padding: Size = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def wide(channels: int, out: int, length: int = 7) -> Convolution:
    """A 1 x `length` convolution that preserves the size."""
    return Convolution(channels, out, (1, length), padding=(0, length // 2))


def high(channels: int, out: int, length: int = 7) -> Convolution:
    return Convolution(channels, out, (length, 1), padding=(length // 2, 0))


def mean_around(x: Tensor) -> Tensor:
    """3 x 3 average pooling that excludes the padding, as TensorFlow does."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    """At 35 x 35 (figure 5 of the paper)."""

    def __init__(self, channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(channels, 64, 1)
        self.branch5x5_1 = Convolution(channels, 48, 1)
        self.branch5x5_2 = Convolution(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Convolution(channels, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, padding=1)
        self.branch_pool = Convolution(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        fives = self.branch5x5_2(self.branch5x5_1(x))
        threes = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        pooled = self.branch_pool(mean_around(x))
        return torch.cat([self.branch1x1(x), fives, threes, pooled], dim=1)


class BlockB(nn.Module):
    """From 35 x 35 to 17 x 17."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = Convolution(channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = Convolution(channels, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        threes = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), threes, F.max_pool2d(x, 3, stride=2)], dim=1)


class BlockC(nn.Module):
    """At 17 x 17, with factorised 7 x 7 convolutions (figure 6)."""

    def __init__(self, channels: int, narrow: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(channels, 192, 1)
        self.branch7x7_1 = Convolution(channels, narrow, 1)
        self.branch7x7_2 = wide(narrow, narrow)
        self.branch7x7_3 = high(narrow, 192)
        self.branch7x7dbl_1 = Convolution(channels, narrow, 1)
        self.branch7x7dbl_2 = high(narrow, narrow)
        self.branch7x7dbl_3 = wide(narrow, narrow)
        self.branch7x7dbl_4 = high(narrow, narrow)
        self.branch7x7dbl_5 = wide(narrow, 192)
        self.branch_pool = Convolution(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        pooled = self.branch_pool(mean_around(x))
        return torch.cat([self.branch1x1(x), once, twice, pooled], dim=1)


class BlockD(nn.Module):
    """From 17 x 17 to 8 x 8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = Convolution(channels, 192, 1)
        self.branch3x3_2 = Convolution(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Convolution(channels, 192, 1)
        self.branch7x7x3_2 = wide(192, 192)
        self.branch7x7x3_3 = high(192, 192)
        self.branch7x7x3_4 = Convolution(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        threes = self.branch3x3_2(self.branch3x3_1(x))
        strips = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        strips = self.branch7x7x3_4(strips)
        return torch.cat([threes, strips, F.max_pool2d(x, 3, stride=2)], dim=1)


class BlockE(nn.Module):
    """At 8 x 8, with an expanded filter bank (figure 7).

    Args:
        maximum: use max pooling instead of average pooling, as the last block does.
    """

    def __init__(self, channels: int, maximum: bool) -> None:
        super().__init__()
        self.maximum = maximum
        self.branch1x1 = Convolution(channels, 320, 1)
        self.branch3x3_1 = Convolution(channels, 384, 1)
        self.branch3x3_2a = wide(384, 384, 3)
        self.branch3x3_2b = high(384, 384, 3)
        self.branch3x3dbl_1 = Convolution(channels, 448, 1)
        self.branch3x3dbl_2 = Convolution(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = wide(384, 384, 3)
        self.branch3x3dbl_3b = high(384, 384, 3)
        self.branch_pool = Convolution(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        around = F.max_pool2d(x, 3, stride=1, padding=1) if self.maximum else mean_around(x)
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch3x3_2a(once),
                self.branch3x3_2b(once),
                self.branch3x3dbl_3a(twice),
                self.branch3x3dbl_3b(twice),
                self.branch_pool(around),
            ],
            dim=1,
        )


class InceptionV3(nn.Module):
    """Images [B, 3, 299, 299] from `prepare` -> features [B, 2048]."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
        self.Mixed_5b = BlockA(192, pooled=32)
        self.Mixed_5c = BlockA(256, pooled=64)
        self.Mixed_5d = BlockA(288, pooled=64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(768, narrow=128)
        self.Mixed_6c = BlockC(768, narrow=160)
        self.Mixed_6d = BlockC(768, narrow=160)
        self.Mixed_6e = BlockC(768, narrow=192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b = BlockE(1280, maximum=False)
        self.Mixed_7c = BlockE(2048, maximum=True)
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(dim=(2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """Features [B, 2048] -> logits [B, 1008], without the bias, as in the original code of the
        Inception score."""
        return features @ self.fc.weight.T


def prepare(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, 299, 299] in [-1, 1), as in the original graph."""
    x = resize_as_tensorflow(images.permute(0, 3, 1, 2).float(), SIDE)
    return (x - 128) / 128


def resize_as_tensorflow(x: Tensor, side: int) -> Tensor:
    """Bilinear resizing of TensorFlow 1 (`align_corners=False`, no half-pixel centres).

    Output pixel i samples position i * size / side, which shifts the image up and left by up to
    half a pixel, without antialiasing. This is a flaw, but published numbers depend on it.

    Args:
        x: float32 [B, C, H, W].

    Returns:
        float32 [B, C, side, side].
    """
    for axis in (3, 2):
        size = x.shape[axis]
        step = torch.tensor(size / side, dtype=torch.float32, device=x.device)
        place = torch.arange(side, dtype=torch.float32, device=x.device) * step
        lower = place.long()
        share = (place - lower).view((side, 1) if axis == 2 else (side,))
        low = x.index_select(axis, lower)
        x = low + (x.index_select(axis, (lower + 1).clamp(max=size - 1)) - low) * share
    return x
