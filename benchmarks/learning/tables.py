"""The results as tables and plots: medians over seeds, and the range where there are several."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ablations import ABLATIONS, WAY
from recipes import BASELINES, DEFAULT

from limner.evaluation.curves import Points, line_chart

Line = dict[str, Any]
Key = tuple[str, float, str]
"""Recipe, minutes, and which weights."""

HEAD = """\
| recipe | minutes | steps | trained @1 / @5 | held out @1 / @5 | kernel distance | held-out error |
|---|---|---|---|---|---|---|
"""
FIGURES: tuple[tuple[str, Callable[[Line], float], str], ...] = (
    ("held-out recall at 5", lambda line: line["held_out"]["at_5"], "recall"),
    ("kernel distance x 1000", lambda line: line["kernel_distance"], "distance"),
)


def write(lines: Iterable[Line], folder: Path) -> None:
    """Print the tables, keep them as learning.md, and draw learning-*.svg."""
    groups: dict[Key, list[Line]] = defaultdict(list)
    for line in lines:
        groups[line["recipe"], line["minutes"], line["weights"]].append(line)
    text = "## Against the baselines\n\n" + HEAD
    text += rows(groups, [*BASELINES, *DEFAULT])
    text += "\n## The way to the defaults, ten minutes each\n\n" + HEAD + rows(groups, WAY)
    text += "\n## One change each of the defaults, ten minutes\n"
    for title, recipes in ABLATIONS.items():
        if found := rows(groups, recipes):
            text += (f"\n**{title}**\n" if title else "") + "\n" + HEAD + found
    (folder / "learning.md").write_text(text, encoding="utf-8")
    print(text)
    for title, figure, name in FIGURES:
        chart = line_chart(series(groups, figure), title, "minutes of one core", title)
        chart = chart.replace("<svg ", '<svg style="background:#fff;color:#222" ', 1)
        (folder / f"learning-{name}.svg").write_text(chart, encoding="utf-8")


def rows(groups: dict[Key, list[Line]], names: Iterable[str]) -> str:
    wanted = list(names)
    keys = sorted(
        (key for key in groups if key[0] in wanted), key=lambda k: (wanted.index(k[0]), k)
    )
    return "".join(row(key, groups[key]) for key in keys)


def row(key: Key, lines: list[Line]) -> str:
    name, minutes, weights = key
    name += ", last weights" if weights == "last" else ""
    seeds = f" ({len(lines)} seeds)" if len(lines) > 1 else ""

    def share(split: str) -> str:
        one, five = ([line[split][k] for line in lines] for k in ("at_1", "at_5"))
        return f"{middle(one, '.2f')} / {middle(five, '.2f')}"

    cells = [
        f"{name}{seeds}",
        f"{minutes:g}",
        f"{statistics.median(line['steps'] for line in lines):,.0f}",
        share("trained"),
        share("held_out"),
        middle([line["kernel_distance"] for line in lines], ".0f"),
        middle([line["held_out_error"] for line in lines], ".3f"),
    ]
    return "| " + " | ".join(cells) + " |\n"


def middle(values: list[float], form: str) -> str:
    """The median, and the range of several values."""
    said = format(statistics.median(values), form)
    if len(values) > 1 and (low := format(min(values), form)) != (
        high := format(max(values), form)
    ):
        said += f" ({low}-{high})"
    return said


def series(groups: dict[Key, list[Line]], figure: Callable[[Line], float]) -> dict[str, Points]:
    """Medians over minutes: the published recipe, each rate of the other baseline, the defaults."""
    found: dict[str, Points] = defaultdict(list)
    for (name, minutes, weights), lines in sorted(groups.items()):
        if name in BASELINES:
            label = name if weights == "averaged" else f"{name}, last"
        elif name in DEFAULT or name == "default":
            label = "default"
        else:
            continue
        found[label].append((minutes, statistics.median(map(figure, lines))))
    return {label: sorted(points) for label, points in found.items()}
