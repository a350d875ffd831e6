"""Line charts as inline SVG: no JavaScript, no library, legible in light and dark mode."""

from __future__ import annotations

import math
from html import escape

Points = list[tuple[float, float]]

WIDTH, HEIGHT = 480.0, 290.0  # about the size on the page, so the font sizes match
NARROW = 320.0  # for phones
TOP, BOTTOM, LEFT = 12.0, 48.0, 56.0
FONT_SIZE = 13.0
LABEL_HEIGHT = 16.0  # distance between the series labels at the right
CHARACTER = 7.2  # mean character width, to reserve space for the labels

# The page can set --chart-0 ...; the defaults are distinguishable on white and on black and with
# red-green colour blindness (after Okabe and Ito, "Color universal design", 2008).
COLOURS = ("#2f7ed8", "#e07b00", "#0a9e78", "#cc5f9e", "#8a63d2", "#8d8d3a")


def line_chart(
    series: dict[str, Points],
    title: str,
    x_label: str,
    y_label: str,
    log_y: bool = False,
    width: float | None = None,
) -> str:
    """One `<svg>` element with a line per series, labelled at its right end.

    Points are (x, y), joined in order. NaN and infinite values, and with `log_y` also y <= 0, leave
    a gap. Text is escaped; a chart without points says so.
    """
    width = width or WIDTH
    pieces = {name: split_at_gaps(points, log_y) for name, points in series.items()}
    pieces = {name: runs for name, runs in pieces.items() if runs}
    right = 14 + CHARACTER * max((len(name) for name in pieces), default=0)
    head = (
        f'<svg class="chart" viewBox="0 0 {width:g} {HEIGHT:g}" role="img" '
        f'aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg" '
        f'font-family="system-ui, sans-serif" font-size="{FONT_SIZE:g}" fill="currentColor">'
        f"<title>{escape(title)}</title>"
    )
    if not pieces:
        middle = f'x="{width / 2:g}" y="{HEIGHT / 2:g}" text-anchor="middle"'
        return f"{head}<text {middle}>no data yet</text></svg>"

    xs = [x for runs in pieces.values() for run in runs for x, _ in run]
    ys = [y for runs in pieces.values() for run in runs for _, y in run]
    x_low, x_high = padded(min(xs), max(xs), 0.0)
    y_low, y_high = log_range(min(ys), max(ys)) if log_y else padded(min(ys), max(ys), 0.05)

    def place_x(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (width - LEFT - right)

    def place_y(y: float) -> float:
        if log_y:
            share = math.log(y / y_low) / math.log(y_high / y_low)
        else:
            share = (y - y_low) / (y_high - y_low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    out = [head]
    for tick in log_ticks(y_low, y_high) if log_y else nice_ticks(y_low, y_high):
        y = place_y(tick)
        out.append(
            f'<line x1="{LEFT:g}" x2="{width - right:.1f}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="currentColor" stroke-opacity="0.14"/>'
            f'<text x="{LEFT - 8:g}" y="{y + 4:.1f}" text-anchor="end" opacity="0.75">'
            f"{format_tick(tick)}</text>"
        )
    for tick in nice_ticks(x_low, x_high, about=5 if width >= WIDTH else 4):
        out.append(
            f'<text x="{place_x(tick):.1f}" y="{HEIGHT - BOTTOM + 19:g}" text-anchor="middle" '
            f'opacity="0.75">{format_tick(tick)}</text>'
        )
    out.append(
        f'<text x="{(LEFT + width - right) / 2:.1f}" y="{HEIGHT - 8:g}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
        f'<text transform="translate(13 {(TOP + HEIGHT - BOTTOM) / 2:g}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    ends = [place_y(runs[-1][-1][1]) for runs in pieces.values()]
    for k, (label_y, (name, runs)) in enumerate(zip(spread(ends), pieces.items(), strict=True)):
        colour = f"var(--chart-{k}, {COLOURS[k % len(COLOURS)]})"
        out.append(f'<g class="series" style="stroke:{colour};fill:{colour}">')
        for run in runs:
            where = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in run)
            out.append(f'<polyline points="{where}" fill="none" stroke-width="2"/>')
            if len(run) <= 12:  # with few measurements, mark each
                out += [
                    f'<circle cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="3"/>' for x, y in run
                ]
        out.append(
            f'<text x="{width - right + 8:.1f}" y="{label_y + 4:.1f}" stroke="none">'
            f"{escape(name)}</text></g>"
        )
    return "".join(out) + "</svg>"


def split_at_gaps(points: Points, log_y: bool) -> list[Points]:
    """Runs of consecutive points that can be plotted."""
    runs: list[Points] = [[]]
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log_y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def padded(low: float, high: float, share: float) -> tuple[float, float]:
    """The range, extended by `share` of its length at both ends; never empty."""
    length = (high - low) or abs(low) or 1.0
    if high == low:
        share = max(share, 0.5)
    return low - share * length, high + share * length


def log_range(low: float, high: float) -> tuple[float, float]:
    """The range, extended by 4 % of its logarithmic length at both ends, at least 10 % of y."""
    factor = max((high / low) ** 0.04, 1.1)
    return low / factor, high * factor


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """About `about` multiples of 1, 2, or 5 times a power of ten within [low, high]."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, and 5 in each decade; linear ticks for less than one decade."""
    if high / low < 8:
        return nice_ticks(low, high)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    # Over many decades only powers of ten, or the labels would overlap.
    marks = (1, 2, 5) if len(decades) <= 4 else (1,)
    ticks = [m * 10.0**k for k in decades for m in marks]
    return [tick for tick in ticks if low <= tick <= high]


def format_tick(value: float) -> str:
    """1500000 -> 1.5M, 20000 -> 20k, 0.30000000000000004 -> 0.3."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


def spread(wanted: list[float]) -> list[float]:
    """Label positions as close as possible to `wanted`, at least LABEL_HEIGHT apart."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [0.0] * len(wanted)
    floor = TOP
    for i in order:
        placed[i] = max(wanted[i], floor)
        floor = placed[i] + LABEL_HEIGHT
    ceiling = HEIGHT - BOTTOM
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - LABEL_HEIGHT
    return placed
