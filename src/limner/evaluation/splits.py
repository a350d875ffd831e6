"""Where a prompt is from: a trained row, a held-out row, or a person."""

from __future__ import annotations

from enum import StrEnum


class Split(StrEnum):
    """Where a prompt is from. The values are those of `split` in samples.json, results.json, and
    evaluation.json, in the order in which pictures are shown."""

    TRAINED = "trained"
    HELD_OUT = "held out"
    FREE = "free"

    @property
    def key(self) -> str:
        """As a key of evaluation.json: "held_out"."""
        return self.value.replace(" ", "_")

    @property
    def hyphened(self) -> str:
        """Before a noun: "held-out captions"."""
        return self.value.replace(" ", "-")

    @property
    def heading(self) -> str:
        return f"{self.hyphened.capitalize()} prompts"

    @property
    def meaning(self) -> str:
        return MEANINGS[self]


OF_DATA = (Split.TRAINED, Split.HELD_OUT)
"""Splits whose prompts are captions, with a real picture each."""
MEANINGS = {
    Split.TRAINED: "the model was trained on these pictures with these captions",
    Split.HELD_OUT: "never trained on; the real picture is shown beside each",
    Split.FREE: "there is no real picture to compare with",
}
