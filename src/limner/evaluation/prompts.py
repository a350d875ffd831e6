"""Selection of the prompts of an evaluation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from limner.config import Config
from limner.data.image_sizes import BUILT_IN
from limner.data.open import Data
from limner.evaluation.samples import Drawing, of_captions, repeated
from limner.evaluation.splits import Split, adjective

USUAL, MOST_OF_A_CAPTION = 500, 4
"""Images for the distances, and of one caption, at most, where the configuration says nothing."""


@dataclass(frozen=True)
class Plan:
    """The prompts to sample."""

    split: Split
    """The split used for the distances: held out or trained."""
    measured: list[Drawing]
    """For the distances: each caption once, then again with other seeds."""
    asked: list[Drawing]
    """For prompt following: each caption of both splits once; a subset of `measured` and `others`.
    """
    others: list[Drawing]

    @property
    def every(self) -> list[Drawing]:
        return [*self.measured, *self.others]


def plan_of(config: Config, data: Data, events: list[str]) -> Plan:
    """Select the prompts; deviations from the configuration are added to `events`."""
    settings = config.evaluation
    split, own, other = Split.HELD_OUT, data.held_out, data.trained
    if settings.prompts == "trained":
        split, own, other = Split.TRAINED, data.trained, data.held_out
    elif not own.rows:
        events.append(
            "the data set has no held-out images, so training captions are used; the metrics "
            "measure how well the model reproduces its training images, and a model that memorised "
            "them scores best"
        )
        split, own, other = Split.TRAINED, data.trained, data.held_out
    wanted = images_wanted(config, data, split, len(own.rows), events)
    first = of_captions(own, split, wanted, settings.seed)
    other_split = Split.TRAINED if split is Split.HELD_OUT else Split.HELD_OUT
    others = of_captions(other, other_split, settings.other_images, settings.seed)
    return Plan(split, repeated(first, wanted), [*first, *others], others)


def images_wanted(
    config: Config, data: Data, split: Split, captions: int, events: list[str]
) -> int:
    """How many images to generate for the distances; what the configuration leaves open is added to
    `events` if it is fewer than `USUAL`.

    Args:
        captions: of the split, one for each of its rows.
    """
    if config.evaluation.num_images is not None:
        return config.evaluation.num_images
    # Published results of the built-in sets are of so many images, whatever the captions.
    few = min(USUAL, captions * MOST_OF_A_CAPTION)
    if data.set.name in BUILT_IN or few == USUAL:
        return USUAL
    events.append(
        f"{few:,} images were generated for the distances, {MOST_OF_A_CAPTION} of each of the "
        f"{captions:,} {adjective(split)} captions: more of the same captions would show how much "
        "images of one caption differ, not what the model draws for others. Distances on so few "
        f"images are less certain, and comparable with those on as many only "
        f"(evaluation.num_images={USUAL} generates {USUAL:,})"
    )
    return few


def prompts_of_run(data: Data, free_prompts: Sequence[str], most: int | None) -> list[Drawing]:
    """For the end of a run: at most `most` captions of each split, and the free prompts."""
    most = sys.maxsize if most is None else most
    return [
        *of_captions(data.trained, Split.TRAINED, most),
        *of_captions(data.held_out, Split.HELD_OUT, most),
        *(Drawing(prompt, seed, Split.FREE) for seed, prompt in enumerate(free_prompts)),
    ]
