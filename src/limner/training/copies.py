"""Does the model, asked for something new, draw what it was trained on?"""

from __future__ import annotations

import torch
from torch import Tensor

from limner.config import SamplingConfig
from limner.data.examples import Source
from limner.data.rows import PictureError
from limner.diffusion.objective import Objective
from limner.evaluation.distances.memorisation import nearest_ratio
from limner.inference.sampling import draw
from limner.models.text_to_image import TextToImage
from limner.training.heldout import spread
from limner.training.inputs import Inputs

DRAWN, HELD_OUT, TRAINED = 16, 256, 4096
"""How many are drawn, and how many pictures they are compared with at most."""


def copying(
    model: TextToImage,
    objective: Objective,
    inputs: Inputs,
    sampling: SamplingConfig,
    dtype: torch.dtype,
) -> float:
    """`nearest_ratio` of drawings of held-out captions, in the space that is trained in."""
    held_out, trained = some(inputs.held_out, HELD_OUT), some(inputs.trained, TRAINED)
    rows = inputs.held_out.rows
    prompts = [rows[i].captions[0] for i in spread(len(rows), DRAWN)]
    height, width = held_out.shape[-2:]
    seeds = range(len(prompts))
    drawn = draw(model, objective, inputs.words, prompts, seeds, sampling, height, width, dtype)
    return nearest_ratio(drawn.cpu(), held_out, trained)


def some(pictures: Source, most: int) -> Tensor:
    """At most so many good ones, [N, C, H, W], evenly spread over the rows."""
    found = []
    for position in spread(len(pictures.rows), most):
        try:
            found.append(pictures.tensor(position))
        except PictureError:  # it is listed elsewhere
            continue
    return torch.stack(found)
