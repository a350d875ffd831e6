"""A request for images, validated before anything is computed."""

from __future__ import annotations

import json
import re
import secrets
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError

from limner.apps.images_api.errors import ApiError
from limner.apps.images_api.limits import MOST_IMAGES
from limner.apps.serving.request import Prompt
from limner.config.types import SEEDS, NonNegative, PositiveInt, Section, Seed
from limner.messages import shorten, shorten_name

Word = Annotated[str, Field(max_length=1000)]

CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "string_too_long": "string_above_max_length",
    "greater_than": "integer_below_min_value",
    "less_than_equal": "integer_above_max_value",
}
"""The API's code for an error of pydantic; of any other it is "invalid_value"."""


class ImagesRequest(Section):
    """The body of `POST /v1/images/generations`.

    Fields that the API knows and that mean nothing here are accepted, so that programs written for
    it run unchanged; values that ask for what is not done are refused. Unknown fields are refused,
    as by the API: a misspelled one would otherwise be ignored without a word.
    """

    prompt: Prompt
    model: Word | None = None
    n: Annotated[PositiveInt, Field(le=MOST_IMAGES)] = 1
    size: Word = "auto"
    """"WIDTHxHEIGHT" in pixels, or "auto": the size that the model was trained at."""
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png"] = "png"

    seed: Seed | None = None
    """Of the first image; the others have the next ones. None: a random one."""
    negative_prompt: Prompt | None = None
    num_inference_steps: PositiveInt | None = None
    guidance_scale: NonNegative | None = None

    stream: Literal[False] = False
    partial_images: Literal[0] = 0
    background: Literal["auto", "opaque"] = "auto"
    output_compression: Literal[100] = 100
    quality: Word = "auto"
    style: Word | None = None
    moderation: Word = "auto"
    user: Word | None = None
    safety_identifier: Word | None = None

    @classmethod
    def read(cls, body: bytes) -> Self:
        """Raises ApiError, naming the invalid field."""
        try:
            values = json.loads(body)
        except RecursionError:
            raise _not_json("it is nested too deeply") from None
        except ValueError as error:  # invalid JSON or UTF-8, or a number with too many digits
            raise _not_json(str(error)) from None
        if not isinstance(values, dict):
            raise _not_json("it must be an object")
        return cls.of(values)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Raises ApiError, naming the invalid field."""
        # As in the API, null is as good as nothing.
        values = {name: value for name, value in values.items() if value is not None}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise _refused(error) from None

    def seeds(self) -> list[int]:
        """One for each image."""
        first = secrets.randbelow(2**32) if self.seed is None else self.seed
        return [(first + i) % SEEDS for i in range(self.n)]

    def height_and_width(self) -> tuple[int, int] | None:
        """In pixels; None for "auto". Raises ApiError."""
        if self.size == "auto":
            return None
        found = re.fullmatch("([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", self.size)
        if found is None:
            raise ApiError(
                400,
                f"size must be 'auto' or 'WIDTHxHEIGHT', such as '64x64', not {shorten(self.size)}",
                param="size",
                code="invalid_value",
            )
        return int(found[2]), int(found[1])

    def settings(self) -> dict[str, Any]:
        """Those among the keyword arguments of `ImageGenerator.plan` that were given."""
        names = ("negative_prompt", "num_inference_steps", "guidance_scale")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def _not_json(why: str) -> ApiError:
    return ApiError(400, f"the body is not valid JSON: {why}", code="invalid_json")


def _refused(error: ValidationError) -> ApiError:
    # An unknown field first: it explains why another may be missing.
    found = sorted(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")[0]
    param = shorten_name(".".join(map(str, found["loc"])), 100)
    code = CODES.get(found["type"], "invalid_value")
    if code == "unknown_parameter":
        message = f"Unknown parameter: '{param}'."
    elif code == "missing_required_parameter":
        message = f"Missing required parameter: '{param}'."
    else:
        message = f"{param}: {found['msg']}, not {shorten(found['input'])}"
    return ApiError(400, message, param=param, code=code)
