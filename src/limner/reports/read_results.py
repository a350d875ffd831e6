"""Access to evaluation.json without trusting it: missing or invalid values are empty, so that a
page can leave them out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limner.evaluation.splits import Split
from limner.metrics.interval import wilson
from limner.reports.gauges import Interval, is_number

SPLITS = (Split.HELD_OUT, Split.TRAINED)
"""In order of relevance."""


def part(told: Any, key: str) -> dict[str, Any]:
    """The dictionary at `key`, or an empty one."""
    found = told.get(key) if isinstance(told, Mapping) else None
    return found if isinstance(found, dict) else {}


def of_split(told: dict[str, Any], split: str) -> dict[str, Any]:
    """The dictionary of a split; "held out" may be written "held_out"."""
    return part(told, split.replace(" ", "_")) or part(told, split)


def rows(told: Any, key: str) -> list[dict[str, Any]]:
    """The dictionaries in the list at `key`."""
    found = told.get(key) if isinstance(told, Mapping) else None
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def texts(told: Mapping[str, Any], key: str) -> list[str]:
    found = told.get(key)
    return [str(line) for line in found] if isinstance(found, list | tuple) else []


def text(told: Mapping[str, Any], key: str) -> str:
    found = told.get(key)
    return found if isinstance(found, str) else ""


def number(value: Any) -> float | None:
    """A finite number, plain or from a `Measured`."""
    value = value.get("value") if isinstance(value, dict) else value
    return float(value) if is_number(value) else None


def interval(value: Any) -> Interval | None:
    """The confidence interval of a `Measured` or of a metric."""
    found = value.get("interval") if isinstance(value, dict) else None
    if isinstance(found, list | tuple) and len(found) == 2 and all(map(is_number, found)):
        return float(found[0]), float(found[1])
    return None


def share_interval(about: dict[str, Any], key: str, count: float | None) -> Interval | None:
    """The stored interval of a proportion, or Wilson's if the sample size is known."""
    found, value = interval(about.get(key)), number(about.get(key))
    if found is None and value is not None and count and 0 <= value <= 1:
        return wilson(value, round(count))
    return found


def of_splits(told: dict[str, Any], key: str, what: str) -> list[tuple[str, dict[str, Any], float]]:
    """For each split that has the number `what`: its name, its dictionary, and the number."""
    found = [(split, of_split(part(told, key), split)) for split in SPLITS]
    pairs = [(split, about, number(about.get(what))) for split, about in found]
    return [(split, about, value) for split, about, value in pairs if value is not None]
