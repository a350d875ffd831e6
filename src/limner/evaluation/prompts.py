"""Which captions an evaluation draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from limner.config import Config
from limner.data.open import Data
from limner.evaluation.samples import Drawing, of_captions, repeated
from limner.evaluation.splits import Split


@dataclass(frozen=True)
class Plan:
    """Which prompts are drawn."""

    split: Split
    """Of the distances: held out or trained."""
    measured: list[Drawing]
    """What distances are of: each caption once, and again with other seeds."""
    asked: list[Drawing]
    """Each caption once, of both splits: did it get what it names? A part of `measured` and
    `others`."""
    others: list[Drawing]

    @property
    def every(self) -> list[Drawing]:
        return [*self.measured, *self.others]


def plan_of(config: Config, data: Data, events: list[str]) -> Plan:
    """What is drawn, and in `events` what of it could not be as it was asked for."""
    settings = config.evaluation
    split, own, other = Split.HELD_OUT, data.held_out, data.trained
    if settings.prompts == "trained":
        split, own, other = Split.TRAINED, data.trained, data.held_out
    elif not own.rows:
        events.append(
            "the data set has no held-out pictures, so trained captions are drawn; these numbers "
            "measure how well the model reproduces its training pictures, and a model that "
            "memorised them scores best"
        )
        split, own, other = Split.TRAINED, data.trained, data.held_out
    first = of_captions(own, split, settings.num_images, settings.seed)
    other_split = Split.TRAINED if split is Split.HELD_OUT else Split.HELD_OUT
    others = of_captions(other, other_split, settings.other_images, settings.seed)
    return Plan(split, repeated(first, settings.num_images), [*first, *others], others)


def prompts_of_run(data: Data, free_prompts: Sequence[str], most: int) -> list[Drawing]:
    """At the end of a run: at most `most` captions of each split, and what people asked for."""
    return [
        *of_captions(data.trained, Split.TRAINED, most),
        *of_captions(data.held_out, Split.HELD_OUT, most),
        *(Drawing(prompt, seed, Split.FREE) for seed, prompt in enumerate(free_prompts)),
    ]
