"""The kinds of values that keys of the configuration have, and what a section of it is."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


def _no_truth(value: Any) -> Any:
    """pydantic takes true for 1, and YAML reads an unquoted `yes` or `on` as true."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "Input should be a number")
    return value


Whole = Annotated[int, BeforeValidator(_no_truth)]
Number = Annotated[float, BeforeValidator(_no_truth)]
PositiveInt = Annotated[Whole, Field(gt=0)]
Count = Annotated[Whole, Field(ge=0)]
Width = Annotated[PositiveInt, Field(le=65_536)]
"""Numbers that a layer has side by side. Limits are far beyond what one machine can train: a
configuration of a stranger, or a slip of the hand, is told before memory is taken."""
Depth = Annotated[PositiveInt, Field(le=1_024)]
"""Layers one behind the other."""
Channels = Annotated[PositiveInt, Field(le=4_096)]
Side = Annotated[PositiveInt, Field(le=16_384)]
"""Of a picture or patch, pixels; 16,384 squared is more than any picture that is read has."""
Batch = Annotated[PositiveInt, Field(le=1_048_576)]
"""Things that are together in memory."""
Helpers = Annotated[Count, Field(le=1_024)]
"""Processes, or what waits for them."""
SEEDS = 2**63
Seed = Annotated[Whole, Field(ge=0, lt=SEEDS)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
PositiveShare = Annotated[Number, Field(gt=0, le=1)]
BelowOne = Annotated[Number, Field(ge=0, lt=1)]
Beta = Annotated[Number, Field(gt=0, lt=1)]


def lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def yaml_no(value: Any) -> Any:
    """YAML 1.1 reads an unquoted `no` as false; for precision the word is meant."""
    return "no" if value is False or value is None else value


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
