"""What an autoencoder is trained and judged by, with nothing to download."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SCALES = (1, 2, 4)


def reconstruction_loss(output: Tensor, target: Tensor, edge_weight: float) -> Tensor:
    """Mean absolute error of pixels, and of the differences between neighbours at three scales.

    The second term keeps edges where a perceptual network would (gradient difference loss, Mathieu
    et al. 2015, arXiv 1511.05440, equation 6, with alpha 1), and the coarse scales keep colours.

    Args:
        output, target: float32 [B, 3, H, W] in [-1, 1].
    """
    loss = (output - target).abs().mean()
    if not edge_weight:
        return loss
    for scale in SCALES:
        error = F.avg_pool2d(output - target, scale)
        across, down = error.diff(dim=-1).abs().mean(), error.diff(dim=-2).abs().mean()
        loss = loss + edge_weight * (across + down)
    return loss


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """Of N(mean, exp(logvar)) from N(0, 1), per number (Kingma & Welling 2013, appendix B)."""
    mean, logvar = mean.float(), logvar.float()
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def psnr(output: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in decibels, [B]; both [B, 3, H, W] in [0, 1]."""
    return -10 * (output - target).square().mean(dim=(1, 2, 3)).log10()


def ssim(output: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each picture, [B] (Wang et al. 2004, equation 13).

    A Gaussian window of 11 x 11 with sigma 1.5, K1 0.01, K2 0.03, mean over window places and
    colours; both [B, 3, H, W] in [0, 1], at least 11 pixels wide and high.
    """
    places = torch.arange(11, dtype=torch.float32, device=output.device) - 5
    gaussian = torch.exp(-places.square() / (2 * 1.5**2))
    gaussian = gaussian / gaussian.sum()
    channels = output.shape[1]
    window = torch.outer(gaussian, gaussian).expand(channels, 1, 11, 11)

    def blurred(x: Tensor) -> Tensor:
        return F.conv2d(x, window, groups=channels)

    a, b = output.float(), target.float()
    mean_a, mean_b = blurred(a), blurred(b)
    var_a = blurred(a * a) - mean_a**2
    var_b = blurred(b * b) - mean_b**2
    covariance = blurred(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )
    return similarity.mean(dim=(1, 2, 3))
