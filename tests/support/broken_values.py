"""JSON with one value replaced, for each value at any depth."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

BROKEN = (None, "<b>", [], {}, float("inf"), -1, True, 10**400)


def with_one_broken(told: Any, values: Sequence[Any]) -> Iterator[Any]:
    """A copy for each value in `told`, in which it is one of `values`, which take turns."""
    for k, (*way, last) in enumerate(_paths(told)):
        damaged = json.loads(json.dumps(told))
        place = damaged
        for key in way:
            place = place[key]
        place[last] = values[k % len(values)]
        yield damaged


def _paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*at, key)
        if isinstance(inner, dict | list):
            yield from _paths(inner, (*at, key))
