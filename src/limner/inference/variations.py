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

    SDEdit (Meng et al. 2021, arXiv 2108.01073): the picture is noised to the timestep that the
    strength names and solved from there. What is coarser than that noise stays.
    """

    x0: Tensor
    """[1 or B, C, h, w] float32: pixels or latents."""
    strength: float
    """Share of the whole noise, 0 (nothing changes) to 1 (nothing is left of the picture)."""


@dataclass(frozen=True)
class Interpolation:
    """The interpolation weight of each picture of a batch, and the prompts and seeds to interpolate
    to."""

    prompts: Sequence[str]
    seeds: Sequence[int]
    weights: Sequence[float]
    """0: at its own prompt and seed; 1: at the other's."""

    def rows(self, which: slice) -> Interpolation:
        """Of some of the pictures."""
        return Interpolation(self.prompts[which], self.seeds[which], self.weights[which])

    def with_more(self, count: int) -> Interpolation:
        """And of so many more, which go nowhere."""
        more = [""] * count, [0] * count, [0.0] * count
        return Interpolation(
            [*self.prompts, *more[0]], [*self.seeds, *more[1]], [*self.weights, *more[2]]
        )


def fitted(source: ImageSource, height: int, width: int) -> Tensor:
    """Any picture as the model was trained to see it, [1, 3, height, width] float32 in [-1, 1]:
    scaled until it covers the size, and its middle cut out (as `data.pictures.decode`).

    Raises:
        LimnerError: there is no such picture, or it cannot be decoded.
    """
    try:
        if isinstance(source, Image.Image):
            image = as_rgb(upright(source))
        else:
            image = open_rgb(source, shorter_side=max(height, width))
    except ImageError as error:  # it has no row that could be taken out
        raise LimnerError(str(error).replace(", or remove its row", "")) from None
    return to_tensor(np.array(fit(image, height, width)))[None]


def slerp(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """From one noise to another on the arc between them (Shoemake 1985), so that what lies between
    is as long as noise is; on the straight line it would be shorter, and drawn as grey.

    Weight 0 gives `first` and 1 gives `second` to the bit.
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

    The state of a token lies on the line between the states at its place in the two texts. Where
    only one of them has a token, it keeps its state, and counts (1 - weight) or weight times in the
    attention and in the mean: texts of different lengths pass into each other without a jump.
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
