"""What the page may ask for: typed, and checked before a model hears of it."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

from pydantic import Field, ValidationError

from limner.config.types import SEEDS, NonNegative, PositiveInt, Section, Seed, Share
from limner.errors import LimnerError
from limner.messages import shorten_name

MOST_IMAGES = 64
MOST_CHARACTERS = 10_000
"""Of a prompt, as of a caption."""
MOST_ERRORS = 8
MOST_PIXELS = 4096
"""Of a side."""


Prompt = Annotated[str, Field(max_length=MOST_CHARACTERS)]


class DrawRequest(Section):
    prompts: Annotated[tuple[Prompt, ...], Field(min_length=1, max_length=MOST_IMAGES)]
    """One or several; each is drawn `num_images` times."""
    num_images: Annotated[PositiveInt, Field(le=MOST_IMAGES)] = 1
    seed: Seed = 0
    """Of the first picture of a prompt; the next has the next."""
    negative_prompt: Prompt | None = None
    num_inference_steps: Annotated[PositiveInt, Field(le=1000)] | None = None
    guidance_scale: NonNegative | None = None
    scheduler_type: str | None = None
    height: Annotated[PositiveInt, Field(le=MOST_PIXELS)] | None = None
    width: Annotated[PositiveInt, Field(le=MOST_PIXELS)] | None = None
    init_image: str | None = None
    """A picture to start from: its file, base64."""
    strength: Share | None = None

    @classmethod
    def read(cls, values: Any) -> DrawRequest:
        """Raises LimnerError, naming what cannot be used."""
        try:
            asked = cls.model_validate(values)
        except ValidationError as error:
            found = error.errors(include_input=False, include_url=False)[:MOST_ERRORS]
            places = [shorten_name(".".join(map(str, e["loc"]))) for e in found]
            lines = [f"{place}: {e['msg']}" for place, e in zip(places, found, strict=True)]
            raise LimnerError("invalid request: " + "; ".join(lines)) from None
        if len(asked.prompts) * asked.num_images > MOST_IMAGES:
            raise LimnerError(
                f"{len(asked.prompts)} prompts, each {asked.num_images} times, are more than "
                f"{MOST_IMAGES} pictures; request fewer"
            )
        return asked

    def images(self) -> list[tuple[str, int]]:
        """Prompt and seed of each picture."""
        seeds = [(self.seed + i) % SEEDS for i in range(self.num_images)]
        return [(prompt, seed) for prompt in self.prompts for seed in seeds]

    def settings(self) -> dict[str, Any]:
        """Arguments of `ImageGenerator.generate_batch` by the same names.

        Raises:
            LimnerError: `init_image` is no base64.
        """
        names = ("num_inference_steps", "guidance_scale", "scheduler_type", "height", "width")
        found = {name: getattr(self, name) for name in (*names, "negative_prompt", "strength")}
        if self.init_image is not None:
            try:
                found["init_image"] = base64.b64decode(self.init_image, validate=True)
            except (binascii.Error, ValueError):
                raise LimnerError("init_image is not valid base64") from None
        return found
