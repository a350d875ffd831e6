"""What is measured, with what, and against what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from limner.choices import Dtype
from limner.config.types import Count, PositiveInt, Section, Seed

MOST_PICTURES = 16_777_216
"""That a number can ask for; each is drawn or read."""


class EvaluationConfig(Section):
    """Of `limner evaluate`: what is drawn, and what it is measured with and against."""

    num_images: Annotated[PositiveInt, Field(le=MOST_PICTURES)] = 500
    """Pictures drawn for the distances. Where there are fewer captions, each is drawn again with
    other seeds."""
    prompts: Literal["held_out", "trained"] = "held_out"
    """Whose captions they are of. A data set that holds out none has `trained` ones only."""
    other_images: Annotated[Count, Field(le=MOST_PICTURES)] = 100
    """Pictures of the other captions, one each, so that recall, the checker, and the report show
    both kinds; 0: none."""
    seed: Seed = 0
    """Of the first picture; the next ones have the next seeds."""
    dtype: Dtype = "float32"
    """What the network draws in. In float32 numbers do not depend on the batch or the machine."""
    loss_images: Annotated[PositiveInt, Field(le=MOST_PICTURES)] = 256
    """Pictures of either split that the loss by noise level looks at, at most."""
    reference: str | None = None
    """What distances are to. None: the data set's own pictures with the prompts that are drawn;
    else a folder of pictures, or an .npz of ADM's evaluator or of pytorch-fid."""
    reference_images: Annotated[PositiveInt, Field(le=MOST_PICTURES)] = 10_000
    """Pictures of the data set that the reference has, at most, evenly spread over them."""
    efficientnet: bool = True
    """Distances on EfficientNet-Lite0, whose weights a package brings (extra `evaluation`)."""
    inception: str | None = None
    """Weights of Inception-v3 for FID, KID, and the Inception score: a file, a folder that holds
    it, or a Hub id. None: not measured."""
    dinov2: str | None = None
    """DINOv2 for FD-DINOv2: a folder or a Hub id (facebook/dinov2-large). None: not measured."""
    clip: str | None = None
    """CLIP for CMMD and CLIP score: a folder or a Hub id (openai/clip-vit-large-patch14-336).
    None: not measured."""
    floor_repeats: Annotated[Count, Field(le=1_024)] = 3
    """How often two sets of real pictures are drawn to say what the distance between them is; 0:
    no floor."""
