"""Where a prompt comes from: the training split, the held-out split, or the user."""

from __future__ import annotations

from enum import StrEnum


class Split(StrEnum):
    """Where a prompt comes from. The values are those of `split` in samples.json, results.json, and
    evaluation.json, in the order in which images are shown."""

    TRAINED = "trained"
    HELD_OUT = "held out"
    FREE = "free"

    @property
    def key(self) -> str:
        """The key in evaluation.json: "held_out"."""
        return self.value.replace(" ", "_")

    @property
    def hyphened(self) -> str:
        """The value with a hyphen: "held-out"."""
        return self.value.replace(" ", "-")

    @property
    def heading(self) -> str:
        return f"{adjective(self).capitalize()} prompts"

    @property
    def meaning(self) -> str:
        return MEANINGS[self]


def adjective(split: str) -> str:
    """A split before a noun, "training" or "held-out", from its value or its key."""
    name = split.replace("_", " ")
    return "training" if name == Split.TRAINED else name.replace(" ", "-")


OF_DATA = (Split.TRAINED, Split.HELD_OUT)
"""Splits whose prompts are captions, each with a real image."""
MEANINGS = {
    Split.TRAINED: "the model was trained on these images with these captions",
    Split.HELD_OUT: "never trained on; the real image is shown next to each",
    Split.FREE: "there is no real image to compare with",
}
