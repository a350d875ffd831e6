"""Lines in a frame, as SVG: enough for the figures of docs/how-it-works.md."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

COLOURS = ("#d1495b", "#00798c", "#edae49", "#30638e", "#66a182", "#8d6a9f")
WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 30, 14, 48


@dataclass(frozen=True)
class Line:
    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


@dataclass(frozen=True)
class Axis:
    name: str
    low: float
    high: float
    ticks: Sequence[float]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, 0 to 1."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def plot(x: Axis, y: Axis, lines: Sequence[Line]) -> str:
    """An SVG with a frame, ticks, the lines, and their names."""

    def px(value: float) -> float:
        return LEFT + x.place(value) * (WIDTH - LEFT - RIGHT)

    def py(value: float) -> float:
        return HEIGHT - BOTTOM - y.place(value) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for tick in x.ticks:
        parts.append(rule(px(tick), TOP, px(tick), HEIGHT - BOTTOM))
        parts.append(words(px(tick), HEIGHT - BOTTOM + 17, f"{tick:,g}", "middle"))
    for tick in y.ticks:
        parts.append(rule(LEFT, py(tick), WIDTH - RIGHT, py(tick)))
        parts.append(words(LEFT - 7, py(tick) + 4, f"{tick:,g}", "end"))
    parts.append(words((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x.name, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="14" y="{middle:.1f}" text-anchor="middle" '
        f'transform="rotate(-90 14 {middle:.1f})">{html.escape(y.name)}</text>'
    )
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        points = [(px(a), py(min(max(b, y.low), y.high))) for a, b in line.points]
        joined = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(
            f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        if line.dots:
            parts += [
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in points
            ]
        if len(lines) > 1:
            at = TOP + 18 + 19 * number
            parts.append(
                f'<rect x="{WIDTH - 178}" y="{at - 9}" width="14" height="4" fill="{colour}"/>'
            )
            parts.append(words(WIDTH - 158, at - 2, line.name, "start"))
    return "\n".join([*parts, "</svg>\n"])


def rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="#ddd"/>'


def words(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'
