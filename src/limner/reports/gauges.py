"""Gauges: values on a scale, with confidence intervals and the real-vs-real baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Interval = tuple[float, float]
Mark = tuple[str, float, float | None]
"""Kind, and position in percent of the gauge: start and end, or a point and None."""


def figure(value: float) -> str:
    """Up to four significant digits: 0.01234, 12.34, 12,345"""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def between(interval: Interval | None, percent: bool = False) -> str:
    """The confidence interval as text; "" if there is none."""
    if interval is None:
        return ""
    low, high = (f"{x:.0%}" if percent else figure(x) for x in interval)
    return f"95% CI {low} to {high}"


def share(value: float) -> str:
    """A percentage; "<1%" or ">99%" if rounding would give 0% or 100%."""
    if 0 < value < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= value < 1 else f"{value:.0%}"


@dataclass(frozen=True)
class DistanceGauge:
    """A distance on a scale from 0, its confidence interval, and the real-vs-real baseline."""

    name: str
    value: float
    interval: Interval | None
    floor: float | None
    """The real-vs-real baseline; None if unknown."""
    floors: Sequence[float]
    """The values that `floor` is the mean of."""
    better: str = "lower"
    notes: Sequence[str] = ()
    counts: str = ""
    """Sample sizes, as text."""
    floor_counts: str = ""

    @property
    def ends(self) -> Interval:
        there = [self.value, *(self.interval or ()), *self.floors, self.floor or 0.0, 0.0]
        low, high = min(there), max(there)
        return low, low + ((high - low) or 1.0) * 1.04

    @property
    def marks(self) -> list[Mark]:
        low, high = self.ends

        def place(value: float) -> float:
            return 100 * (value - low) / (high - low)

        marks: list[Mark] = []
        if self.interval is not None:
            marks.append(("interval", place(self.interval[0]), place(self.interval[1])))
        if len(self.floors) > 1:
            marks += [("floor one", place(one), None) for one in self.floors]
        if self.floor is not None:
            marks.append(("floor", place(self.floor), None))
        return [*marks, ("value", place(self.value), None)]


@dataclass(frozen=True)
class ShareGauge:
    """A proportion as a bar with its confidence interval."""

    name: str
    value: float
    interval: Interval | None
    note: str = ""

    @property
    def marks(self) -> list[Mark]:
        def place(value: float) -> float:
            return 100 * min(1.0, max(0.0, value))

        marks: list[Mark] = [("bar", 0.0, place(self.value))]
        if self.interval is not None:
            marks.append(("whisker", place(self.interval[0]), place(self.interval[1])))
        return marks


def is_number(value: object) -> bool:
    """Whether it is a finite number that a float can hold; JSON may have integers of any length."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
