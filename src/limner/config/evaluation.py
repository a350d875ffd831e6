"""Settings of the evaluation: metrics, networks, and reference."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from limner.choices import Dtype
from limner.config.types import Count, PositiveInt, Section, Seed

MOST_IMAGES = 16_777_216
"""That a number can ask for; each is drawn or read."""


class EvaluationConfig(Section):
    """Settings of `limner evaluate`: what is generated, and which metrics and reference it is
    compared with."""

    num_images: Annotated[PositiveInt, Field(le=MOST_IMAGES)] | None = None
    """Pictures to generate for the distances. If there are fewer captions, they are reused with
    other seeds. None: 500, but at most 4 of each caption (500 of the built-in sets)."""
    prompts: Literal["held_out", "trained"] = "held_out"
    """Which captions to generate from. A data set without a held-out split only has `trained`."""
    other_images: Annotated[Count, Field(le=MOST_IMAGES)] = 100
    """Pictures to generate from the other split, one per caption, so that recall, the checker, and
    the report cover both. 0: none."""
    seed: Seed = 0
    """Seed of the first picture; the following pictures use the following seeds."""
    dtype: Dtype = "float32"
    """Precision of sampling. With float32, results do not depend on the batch size or the
    machine."""
    loss_images: Annotated[PositiveInt, Field(le=MOST_IMAGES)] = 256
    """Maximum number of pictures per split for the loss by noise level."""
    reference: str | None = None
    """Reference for the distances. None: the data set's own pictures for the same prompts.
    Otherwise a folder of pictures, or an .npz file of ADM's evaluator or of pytorch-fid."""
    reference_images: Annotated[PositiveInt, Field(le=MOST_IMAGES)] = 10_000
    """Maximum number of reference pictures from the data set, evenly spread over it."""
    efficientnet: bool = True
    """Measure distances with EfficientNet-Lite0, whose weights come as a package (extra
    `evaluation`)."""
    inception: str | None = None
    """Inception-v3 weights for FID, KID, and Inception score: a file, its folder, or a Hub id.
    None: not measured."""
    dinov2: str | None = None
    """DINOv2 for FD-DINOv2: a folder or a Hub id (facebook/dinov2-large). None: not measured."""
    clip: str | None = None
    """CLIP for CMMD and CLIP score: a folder or a Hub id (openai/clip-vit-large-patch14-336). None:
    not measured."""
    floor_repeats: Annotated[Count, Field(le=1_024)] = 3
    """Number of random splits of real pictures used to measure the distance between two sets of
    real pictures, the lower bound. 0: not measured."""
