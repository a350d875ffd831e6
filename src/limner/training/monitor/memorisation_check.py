"""Check during training whether samples of held-out captions copy trained images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from limner.config import SamplingConfig
from limner.data.dataset import ImageError
from limner.data.examples import Source
from limner.data.order import evenly_spaced
from limner.diffusion.objective import Objective
from limner.inference.sampling import draw
from limner.metrics.memorisation import nearest_ratio
from limner.models.text_to_image import TextToImage
from limner.training.inputs import Inputs

DRAWN, HELD_OUT, TRAINED = 16, 256, 4096
"""Pictures drawn, and the most held-out and trained pictures they are compared with."""


def copying(
    model: TextToImage,
    objective: Objective,
    inputs: Inputs,
    sampling: SamplingConfig,
    dtype: torch.dtype,
) -> float | None:
    """`nearest_ratio` of samples of held-out captions, in the space of training; None if no
    held-out picture has the size of a trained one."""
    held_out, trained = some(inputs.held_out, HELD_OUT), some(inputs.trained, TRAINED)
    shape = common_shape(held_out, trained)
    if shape is None:
        return None
    held_out, trained = of_shape(held_out, shape), of_shape(trained, shape)
    rows = inputs.held_out.rows
    prompts = [rows[i].captions[0] for i in evenly_spaced(len(rows), DRAWN)]
    _, height, width = shape
    seeds = range(len(prompts))
    drawn = draw(model, objective, inputs.words, prompts, seeds, sampling, height, width, dtype)
    return nearest_ratio(drawn.cpu(), torch.stack(held_out), torch.stack(trained))


def some(images: Source, most: int) -> list[Tensor]:
    """At most this many usable pictures, each [C, H, W], evenly spread over the rows."""
    found = []
    for position in evenly_spaced(len(images.rows), most):
        try:
            found.append(images.tensor(position))
        except ImageError:  # reported elsewhere
            continue
    return found


def common_shape(held_out: Sequence[Tensor], trained: Sequence[Tensor]) -> tuple[int, ...] | None:
    """The shape of most held-out pictures: with buckets, only pictures of one size are compared."""
    there = {tuple(image.shape) for image in trained}
    shapes = Counter(shape for p in held_out if (shape := tuple(p.shape)) in there)
    return shapes.most_common(1)[0][0] if shapes else None


def of_shape(images: Sequence[Tensor], shape: tuple[int, ...]) -> list[Tensor]:
    return [image for image in images if tuple(image.shape) == shape]
