"""Requests from the page, validated before they reach the model."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

from pydantic import Field

from limner.apps.serving.request import Prompt, read_request
from limner.config.types import SEEDS, NonNegative, PositiveInt, Section, Seed, Share
from limner.errors import LimnerError

MOST_IMAGES = 64
MOST_PIXELS = 4096
"""Maximum height and width."""


class DrawRequest(Section):
    prompts: Annotated[tuple[Prompt, ...], Field(min_length=1, max_length=MOST_IMAGES)]
    """One or more prompts; `num_images` images are generated for each."""
    num_images: Annotated[PositiveInt, Field(le=MOST_IMAGES)] = 1
    seed: Seed = 0
    """Seed of the first image of each prompt, incremented for the others."""
    negative_prompt: Prompt | None = None
    num_inference_steps: Annotated[PositiveInt, Field(le=1000)] | None = None
    guidance_scale: NonNegative | None = None
    scheduler_type: str | None = None
    height: Annotated[PositiveInt, Field(le=MOST_PIXELS)] | None = None
    width: Annotated[PositiveInt, Field(le=MOST_PIXELS)] | None = None
    init_image: str | None = None
    """Initial image: an image file in base64."""
    strength: Share | None = None

    @classmethod
    def read(cls, values: Any) -> DrawRequest:
        """Validate a request. Raises LimnerError, naming the invalid fields."""
        asked = read_request(cls, values)
        if len(asked.prompts) * asked.num_images > MOST_IMAGES:
            raise LimnerError(
                f"{len(asked.prompts)} prompts with {asked.num_images} images each exceed the "
                f"limit of {MOST_IMAGES} images; request fewer"
            )
        return asked

    def images(self) -> list[tuple[str, int]]:
        """Prompt and seed of each image."""
        seeds = [(self.seed + i) % SEEDS for i in range(self.num_images)]
        return [(prompt, seed) for prompt in self.prompts for seed in seeds]

    def texts(self) -> list[str]:
        """All that the model reads."""
        return [*self.prompts, *([self.negative_prompt] if self.negative_prompt else [])]

    def settings(self) -> dict[str, Any]:
        """Keyword arguments for `ImageGenerator.generate_batch`.

        Raises:
            LimnerError: `init_image` is not valid base64.
        """
        names = ("num_inference_steps", "guidance_scale", "scheduler_type", "height", "width")
        found = {name: getattr(self, name) for name in (*names, "negative_prompt", "strength")}
        if self.init_image is not None:
            try:
                found["init_image"] = base64.b64decode(self.init_image, validate=True)
            except (binascii.Error, ValueError):
                raise LimnerError("init_image is not valid base64") from None
        return found
