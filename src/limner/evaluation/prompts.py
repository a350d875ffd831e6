"""Selection of the prompts of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from limner.config import Config
from limner.data.open import Data
from limner.evaluation.samples import Drawing, of_captions, repeated
from limner.evaluation.splits import Split


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
    first = of_captions(own, split, settings.num_images, settings.seed)
    other_split = Split.TRAINED if split is Split.HELD_OUT else Split.HELD_OUT
    others = of_captions(other, other_split, settings.other_images, settings.seed)
    return Plan(split, repeated(first, settings.num_images), [*first, *others], others)


def prompts_of_run(data: Data, free_prompts: Sequence[str], most: int) -> list[Drawing]:
    """For the end of a run: at most `most` captions of each split, and the free prompts."""
    return [
        *of_captions(data.trained, Split.TRAINED, most),
        *of_captions(data.held_out, Split.HELD_OUT, most),
        *(Drawing(prompt, seed, Split.FREE) for seed, prompt in enumerate(free_prompts)),
    ]
