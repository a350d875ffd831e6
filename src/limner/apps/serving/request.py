"""Requests from a page, validated before they reach a model."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from limner.config.types import Section
from limner.data.formats.entries import MOST_CHARACTERS
from limner.errors import LimnerError
from limner.messages import shorten_name

MOST_ERRORS = 8

Prompt = Annotated[str, Field(max_length=MOST_CHARACTERS)]
"""As long as a caption may be."""
Asked = TypeVar("Asked", bound=Section)


def read_request(kind: type[Asked], values: Any) -> Asked:
    """Validate what a page sent. Raises LimnerError, naming the invalid fields."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)[:MOST_ERRORS]
        places = [shorten_name(".".join(map(str, e["loc"]))) for e in found]
        lines = [f"{place}: {e['msg']}" for place, e in zip(places, found, strict=True)]
        raise LimnerError("invalid request: " + "; ".join(lines)) from None
