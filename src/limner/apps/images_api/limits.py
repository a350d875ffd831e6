"""What one request, and all of them together, may take."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationError

from limner.config.types import Positive, PositiveInt, Section
from limner.errors import LimnerError

MOST_IMAGES = 10
"""Of one request; OpenAI's own limit."""
MOST_STEPS = 250
"""More only where a checkpoint's own settings have more."""
MOST_AREA = 4
"""Pixels of an image, as a multiple of the largest size that the model was trained at."""
MOST_BYTES = 2**20
"""Of a request's body."""
MOST_FORM_BYTES = 8 * 2**20
"""Of a form with pictures."""
BODY_WITHIN = 30.0
"""Seconds for a request's body to arrive."""
MOST_REQUESTS = 256
"""That are answered at the same time, waiting ones included."""
LINK_LASTS = 600.0
"""Seconds for which the URL of an image works."""
MOST_LINKED_BYTES = 256 * 2**20
"""Of images behind URLs; beyond that the oldest are forgotten."""


class Limits(Section):
    """Those that are set on the command line."""

    batch_size: PositiveInt = 16
    """Images that are drawn at once, at most; 1: no batching."""
    queue: Annotated[PositiveInt, Field(ge=MOST_IMAGES)] = 64
    """Images that wait for a device, at most; further requests are refused with 429."""
    timeout: Positive = 120.0
    """Seconds for a request, waiting included."""


def read_limits(**given: Any) -> Limits:
    """Raises LimnerError, naming the flag."""
    try:
        return Limits(**given)
    except ValidationError as error:
        found = error.errors()[0]
        name = found["loc"][0]
        raise LimnerError(f"--{name} {found['input']}: {found['msg']}") from None
