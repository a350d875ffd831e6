"""Image-to-image, and interpolation between prompts or seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limner.data.dataset import ImageError
from limner.data.images import as_rgb, fit, open_rgb, to_tensor, upright
from limner.errors import LimnerError
from limner.text.conditioning import TextConditioning

ImageSource = str | Path | bytes | Image.Image


@dataclass(frozen=True)
class InitImage:
    """A picture to start from, and the strength of the change.

    SDEdit (Meng et al. 2021, arXiv 2108.01073): noise is added to the picture up to the timestep
    that the strength gives, and the solver starts there. Structure coarser than that noise stays.
    """

    x0: Tensor
    """[1 or B, C, h, w] float32: pixels or latents."""
    strength: float
    """Share of the noise schedule, 0 (nothing changes) to 1 (nothing is left of the picture)."""
    timesteps: Tensor | None = None
    """float64 [steps + 1]; None: they follow from the sampling settings."""
    mask: Tensor | None = None
    """bool [1, 1, h, w], where it is drawn anew (see `masks`); None: everywhere."""


@dataclass(frozen=True)
class Interpolation:
    """The interpolation weight of each picture of a batch, and the prompts and seeds to interpolate
    to."""

    prompts: Sequence[str]
    seeds: Sequence[int]
    weights: Sequence[float]
    """0: its own prompt and seed; 1: the other prompt and seed."""

    def rows(self, which: slice) -> Interpolation:
        """The same for some of the pictures."""
        return Interpolation(self.prompts[which], self.seeds[which], self.weights[which])

    def with_more(self, count: int) -> Interpolation:
        """The same with `count` more pictures of weight 0, to pad a batch."""
        more = [""] * count, [0] * count, [0.0] * count
        return Interpolation(
            [*self.prompts, *more[0]], [*self.seeds, *more[1]], [*self.weights, *more[2]]
        )


def fitted(source: ImageSource, height: int, width: int) -> Tensor:
    """Any picture as the model was trained to see it, [1, 3, height, width] float32 in [-1, 1]:
    scaled to cover the size, and center-cropped (as `data.images.decode`).

    Raises:
        LimnerError: the picture does not exist or cannot be decoded.
    """
    try:
        if isinstance(source, Image.Image):
            image = as_rgb(upright(source))
        else:
            image = open_rgb(source, shorter_side=max(height, width))
    except ImageError as error:  # here there is no row to remove
        raise LimnerError(str(error).replace(", or remove its row", "")) from None
    return to_tensor(np.array(fit(image, height, width)))[None]


def slerp(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Spherical interpolation between two noises (Shoemake 1985), which keeps the norm of noise;
    linear interpolation would shrink it, and the picture would turn grey.

    Weight 0 gives exactly `first`, and 1 exactly `second`.
    """
    a, b = first.double(), second.double()
    cosine = float((a * b).sum() / (a.norm() * b.norm()))
    if abs(cosine) > 0.9999:  # the same noise twice
        return torch.lerp(first, second, weight)
    angle = math.acos(cosine)
    mixed = math.sin((1 - weight) * angle) * a + math.sin(weight * angle) * b
    return (mixed / math.sin(angle)).to(first.dtype)


def between(
    first: TextConditioning, second: TextConditioning, weights: Sequence[float]
) -> TextConditioning:
    """Interpolate between two texts, with B weights.

    Token states are interpolated linearly, position by position. Where only one text has a token,
    its state is kept, and it counts (1 - weight) or weight times in the attention and in the mean:
    so texts of different lengths blend without a jump.
    """
    weight = torch.tensor(weights, dtype=torch.float32, device=first.tokens.device)[:, None]
    only_first, only_second = first.mask & ~second.mask, second.mask & ~first.mask
    share = torch.where(only_first, 1 - weight, torch.where(only_second, weight, 1.0))
    place = torch.where(only_first, 0.0, torch.where(only_second, 1.0, weight))
    vector = None
    if first.vector is not None and second.vector is not None:
        vector = torch.lerp(first.vector, second.vector, weight.to(first.vector.dtype))
    return TextConditioning(
        tokens=torch.lerp(first.tokens, second.tokens, place[..., None].to(first.tokens.dtype)),
        mask=(first.mask | second.mask) & (share > 0),
        vector=vector,
        log_weight=share.clamp(min=1e-30).log(),
    )
