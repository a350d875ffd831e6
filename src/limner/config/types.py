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
