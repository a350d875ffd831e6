"""Numbers as strips of SVG: where they lie, how sure they are, and where the floor is.

The strips hold no text, so that they may be as wide as the page or a telephone; the words stand
around them as HTML.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

HEIGHT = 22

Interval = tuple[float, float]


def figure(value: float) -> str:
    """Four digits at most: 0.01234, 12.34, 12,345"""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def between(interval: Interval | None, percent: bool = False) -> str:
    """The interval in words; "" if there is none."""
    if interval is None:
        return ""
    low, high = (f"{x:.0%}" if percent else figure(x) for x in interval)
    return f"95% interval {low} to {high}"


def distance_gauge(
    name: str,
    value: float,
    interval: Interval | None,
    floor: float | None,
    floors: Sequence[float],
    better: str = "lower",
    notes: Sequence[str] = (),
    counts: str = "",
    floor_counts: str = "",
) -> str:
    """A distance on a scale from 0, its interval, and what real pictures score in its place.

    Args:
        floor: of real pictures against real ones, None: not known.
        floors: the single values that `floor` is the mean of.
        counts, floor_counts: of how many pictures, in words.
    """
    there = [value, *(interval or ()), *floors, *([] if floor is None else [floor]), 0.0]
    low, high = min(there), max(there)
    high = low + ((high - low) or 1.0) * 1.04
    place = scale(low, high)
    marks = ""
    if interval is not None:
        marks += span("interval", place(interval[0]), place(interval[1]))
    for one in floors if len(floors) > 1 else ():
        marks += tick("floor one", place(one))
    if floor is not None:
        marks += tick("floor", place(floor))
    marks += tick("value", place(value))
    about = "; ".join(filter(None, [between(interval), counts]))
    words = [f'<li class="value">drawn <b>{figure(value)}</b> {escape(about)}</li>']
    if floor is not None:
        real = f"real against real <b>{figure(floor)}</b> {escape(floor_counts)}"
        words.append(f'<li class="floor">{real}</li>')
    said = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        f'<div class="gauge"><h3>{escape(name)} <small>· {escape(better)} is better</small></h3>'
        f"{strip(marks)}{ends(figure(low), figure(high))}"
        f'<ul class="legend">{"".join(words)}</ul>{said}</div>'
    )


def share_gauge(name: str, value: float, interval: Interval | None, note: str = "") -> str:
    """A share of 1 as a bar with its interval. `name` and `note` are text."""
    place = scale(0.0, 1.0)
    marks = span("bar", 0.0, place(value))
    if interval is not None:
        marks += span("whisker", place(interval[0]), place(interval[1]))
    said = "; ".join(words for words in (note, between(interval, percent=True)) if words)
    return (
        f'<div class="share"><p><bdi>{escape(name)}</bdi> <b>{escape(_share(value))}</b></p>'
        f"{strip(marks)}"
        f'<p class="note">{escape(said)}</p></div>'
    )


def _share(value: float) -> str:
    """What is rounded to nothing or to all, and is neither, is said as such."""
    if 0 < value < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= value < 1 else f"{value:.0%}"


def scale(low: float, high: float) -> Callable[[float], float]:
    """A function from values to percent of the strip."""

    def place(value: float) -> float:
        return 100 * min(1.0, max(0.0, (value - low) / (high - low)))

    return place


def strip(marks: str) -> str:
    return (
        f'<svg class="strip" viewBox="0 0 100 {HEIGHT}" preserveAspectRatio="none" '
        f'aria-hidden="true"><rect class="track" y="{HEIGHT / 2 - 1:g}" width="100" height="2"/>'
        f"{marks}</svg>"
    )


def span(kind: str, low: float, high: float) -> str:
    inset = {"interval": 4, "bar": 3, "whisker": 9}[kind]
    return (
        f'<rect class="{kind}" x="{low:.2f}" width="{max(high - low, 0.15):.2f}" y="{inset}" '
        f'height="{HEIGHT - 2 * inset}"/>'
    )


def tick(kind: str, at: float) -> str:
    inset = 5 if "one" in kind else 1
    return (
        f'<line class="{kind}" x1="{at:.2f}" x2="{at:.2f}" y1="{inset}" y2="{HEIGHT - inset}" '
        'vector-effect="non-scaling-stroke"/>'
    )


def ends(low: str, high: str) -> str:
    return f'<p class="ends"><span>{low}</span><span>{high}</span></p>'


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
