"""Convolutions and norms in horizontal strips, with the same result in less device memory.

The tiling that is common for autoencoders decodes overlapping tiles and blends them, but each
tile's group norms and attention see that tile only, so the picture changes. Here every layer sees
the whole picture; only the work inside a layer is divided. On a GPU the large tensors between the
layers stay in the memory of the host, and the device holds a strip at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = 256
"""Tensors of at most so many rows are worked on whole, on the device."""


@contextlib.contextmanager
def in_strips(model: nn.Module, rows: int = ROWS) -> Iterator[None]:
    """Within this context the model's layers work in strips of at most `rows` rows."""
    kinds: list[tuple[type[nn.Module], Callable[..., Tensor]]] = [
        (nn.Conv2d, _convolve),
        (nn.GroupNorm, _normalise),
    ]
    changed = []
    for module in model.modules():
        for kind, strips in kinds:
            if isinstance(module, kind):
                plain = module.forward
                module.forward = _replacement(module, plain, strips, rows)
                changed.append(module)
    # What has weights and works on each place by itself (diffusers' RMSNorm of AutoencoderDC).
    for module in model.modules():
        if type(module).__name__ == "RMSNorm":
            plain = module.forward
            module.forward = _replacement(module, plain, _pointwise, rows)
            changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _replacement(
    module: nn.Module, plain: Callable[..., Tensor], strips: Callable[..., Tensor], rows: int
) -> Callable[..., Tensor]:
    weight = next(module.parameters())

    def forward(x: Tensor) -> Tensor:
        height = x.shape[1] if strips is _pointwise else x.shape[-2]
        if x.dim() != 4 or height <= rows:
            return plain(x.to(weight.device))
        return strips(module, plain, x, rows)

    return forward


def _convolve(conv: nn.Conv2d, _: Callable[..., Tensor], x: Tensor, rows: int) -> Tensor:
    """A convolution by strips, each with the rows beyond its edges that the kernel reaches."""
    device = conv.weight.device
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    assert conv.dilation == (1, 1)
    assert conv.padding_mode == "zeros"
    pad = conv.padding[0] if isinstance(conv.padding, tuple) else 0
    pad_width = conv.padding[1] if isinstance(conv.padding, tuple) else 0
    height = x.shape[-2]
    out_height = (height + 2 * pad - kernel) // stride + 1
    pieces = []
    for first in range(0, out_height, rows):
        last = min(first + rows, out_height)
        top, bottom = first * stride - pad, (last - 1) * stride - pad + kernel
        strip = x[..., max(0, top) : min(height, bottom), :].to(device)
        strip = F.pad(strip, (pad_width, pad_width, max(0, -top), max(0, bottom - height)))
        pieces.append(
            F.conv2d(strip, conv.weight, conv.bias, conv.stride, 0, 1, conv.groups).to("cpu")
        )
    return torch.cat(pieces, dim=-2)


def _normalise(norm: nn.GroupNorm, _: Callable[..., Tensor], x: Tensor, rows: int) -> Tensor:
    """A group norm whose statistics are summed up over all strips first."""
    device, groups = norm.weight.device, norm.num_groups
    strips = x.split(rows, dim=-2)
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for strip in strips:  # Chan et al. 1983: the pooled mean and variance of two samples
        values = strip.to(device).float().unflatten(1, (groups, -1)).flatten(2)
        n = values.shape[-1]
        difference = values.mean(dim=-1) - mean.to(device)
        total = count + n
        squares = (
            squares.to(device)
            + values.var(dim=-1, unbiased=False) * n
            + difference.square() * (count * n / total)
        )
        mean, count = mean.to(device) + difference * (n / total), total
    scale = (squares / count + norm.eps).rsqrt()  # [B, groups]
    weight = scale.repeat_interleave(x.shape[1] // groups, dim=1) * norm.weight.float()
    bias = norm.bias.float() - mean.repeat_interleave(x.shape[1] // groups, dim=1) * weight
    pieces = [
        (strip.to(device).float() * weight[..., None, None] + bias[..., None, None])
        .to(x.dtype)
        .to("cpu")
        for strip in strips
    ]
    return torch.cat(pieces, dim=-2)


def _pointwise(module: nn.Module, plain: Callable[..., Tensor], x: Tensor, rows: int) -> Tensor:
    """A layer that sees one place at a time; x [B, H, W, C]."""
    device = next(module.parameters()).device
    return torch.cat([plain(strip.to(device)).to("cpu") for strip in x.split(rows, dim=1)], dim=1)
