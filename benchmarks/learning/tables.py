"""The results as tables and plots: medians over seeds, and the range where there are several."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ablations import ABLATIONS, WAY
from recipes import BASELINES, DEFAULT

from limner.reports.line_chart import Points, line_chart

Line = dict[str, Any]
Key = tuple[str, float, str]
"""Recipe, minutes, and which weights."""

TABLES = {
    "Against the baselines": [*BASELINES, *DEFAULT],
    "The way to the defaults": [*WAY],
    # What has another size than the default is compared among itself.
    **{
        title: [*([] if title.startswith("At ") else ABLATIONS[""]), *recipes]
        for title, recipes in ABLATIONS.items()
        if title
    },
}
"""Titles, and the recipes told under them."""

HEAD = """\
| recipe | minutes | steps | trained @1 / @5 | held out @1 / @5 | kernel distance | held-out error |
|---|---|---|---|---|---|---|
"""
HEAD_WITH_NOISE = """\
| recipe | minutes | steps | trained @1 / @5 | held out @1 / @5 | kernel distance | held-out error \
| noise in flat parts |
|---|---|---|---|---|---|---|---|
"""
"""Where all results have it: those of the first weeks were made before it was measured."""
FIGURES: tuple[tuple[str, Callable[[Line], float], str], ...] = (
    ("held-out recall at 5", lambda line: line["held_out"]["at_5"], "recall"),
    ("kernel distance x 1000", lambda line: line["kernel_distance"], "distance"),
)


def write(lines: Iterable[Line], folder: Path, documents: Iterable[Path] = ()) -> None:
    """Print the tables, keep them as learning.md, put them into documents, draw learning-*.svg."""
    groups: dict[Key, list[Line]] = defaultdict(list)
    for line in lines:
        groups[line["recipe"], line["minutes"], line["weights"]].append(line)
    tables = {
        title: table(groups, recipes)
        for title, recipes in TABLES.items()
        if any(name not in ABLATIONS[""] for name, _, _ in groups if name in recipes)
    }
    text = "\n".join(f"## {title}\n\n{table}" for title, table in tables.items())
    (folder / "learning.md").write_text(text, encoding="utf-8")
    print(text)
    for document in documents:
        told = document.read_text(encoding="utf-8")
        document.write_text(with_tables(told, tables), encoding="utf-8")
    for title, figure, name in FIGURES:
        chart = line_chart(series(groups, figure), title, "minutes of one core", title)
        chart = chart.replace("<svg ", '<svg style="background:#fff;color:#222" ', 1)
        (folder / f"learning-{name}.svg").write_text(chart, encoding="utf-8")


def with_tables(text: str, tables: dict[str, str]) -> str:
    """A document with today's table after each of its `<!-- table: title -->`."""

    def found_table(found: re.Match[str]) -> str:
        return f"{found[1]}\n{tables[found[2]]}"

    return re.sub(r"(<!-- table: (.*?) -->)\n(?:\|.*\n)*", found_table, text)


def table(groups: dict[Key, list[Line]], names: Iterable[str]) -> str:
    wanted = list(names)
    keys = sorted(
        (key for key in groups if key[0] in wanted), key=lambda k: (wanted.index(k[0]), k)
    )
    noise = all("flat_region_std" in line for key in keys for line in groups[key])
    head = HEAD_WITH_NOISE if noise else HEAD
    return head + "".join(row(key, groups[key], noise) for key in keys)


def row(key: Key, lines: list[Line], noise: bool) -> str:
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
    if noise:
        cells.append(middle([line["flat_region_std"]["held_out"] for line in lines], ".1f"))
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
