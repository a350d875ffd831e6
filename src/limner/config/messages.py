"""Validation errors of the configuration, worded for people who write YAML."""

from __future__ import annotations

import difflib
from typing import Any

from limner.messages import shorten, shorten_name

PLAIN_WORDS = {
    "model": "a section with keys",
    "invalid": "a section whose keys are text",
    "tuple": "a list",
    "missing": "a list with more values",
    "too": "a list with fewer values",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
}
"""What pydantic's types are to people who write YAML, by the first word of its error type."""


def sentence(error: Any, known_keys: list[str], sections: list[str]) -> str:
    """One of pydantic's errors, with the nearest known key for one that is not known."""
    # A union's or tuple's branch is part of pydantic's location; people know section.key only.
    key = ".".join(shorten_name(str(part)) for part in error["loc"][:2])
    if error["type"] == "extra_forbidden":
        sections = sections if "." not in key else []
        candidates = sections if isinstance(error["input"], dict) else known_keys + sections
        near = difflib.get_close_matches(key, candidates, n=1, cutoff=0.0)
        name = key.rpartition(".")[2]
        same = [k for k in candidates if k.rpartition(".")[2] == name]
        meant = f"; did you mean {(same or near)[0]}?" if same or near else ""
        return f"{key} is not a known key{meant}"
    kind = error["type"].partition("_")[0]
    expected = PLAIN_WORDS.get(kind, error["msg"].removeprefix("Input should be "))
    return f"{key or 'the configuration'}: must be {expected}, got {shorten(error['input'])}"


def explain(where: str, sentences: list[str]) -> str:
    """The whole message: where the configuration came from, and each thing wrong, once."""
    return f"{where} is not valid:\n" + "\n".join(f"  - {s}" for s in dict.fromkeys(sentences))
