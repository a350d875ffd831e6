"""The results as tables and plots: medians over seeds, with ranges if there are several."""

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
    "How the defaults were found": [*WAY],
    # Recipes of another size than the default are compared only with each other.
    **{
        title: [*([] if title.startswith("At ") else ABLATIONS[""]), *recipes]
        for title, recipes in ABLATIONS.items()
        if title
    },
}
"""Table titles, and the recipes in each."""

HEAD = """\
| recipe | minutes | steps | recall @1 / @5, trained | recall @1 / @5, held out | kernel distance \
| held-out MSE |
|---|---|---|---|---|---|---|
"""
HEAD_WITH_NOISE = """\
| recipe | minutes | steps | recall @1 / @5, trained | recall @1 / @5, held out | kernel distance \
| held-out MSE | noise in flat areas |
|---|---|---|---|---|---|---|---|
"""
"""Used where every result has the last column: the oldest results predate that measurement."""
CHINESE = {
    "recipe": "配方",
    "minutes": "分钟",
    "steps": "步数",
    "recall @1 / @5, trained": "召回率 @1 / @5，训练",
    "recall @1 / @5, held out": "召回率 @1 / @5，留出",
    "kernel distance": "核距离",
    "held-out MSE": "留出 MSE",
    "noise in flat areas": "平坦区域噪声",
}
"""Column headings in Chinese documents; names of recipes are the same in both languages."""
FIGURES: tuple[tuple[str, Callable[[Line], float], str], ...] = (
    ("held-out recall@5", lambda line: line["held_out"]["at_5"], "recall"),
    ("kernel distance x 1000", lambda line: line["kernel_distance"], "distance"),
)


def write(lines: Iterable[Line], folder: Path, documents: Iterable[Path] = ()) -> None:
    """Print the tables, write learning.md, update the documents, plot learning-*.svg."""
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
        text = document.read_text(encoding="utf-8")
        shown = tables
        if ".zh-CN" in document.name:
            shown = {title: in_chinese(table) for title, table in tables.items()}
        document.write_text(with_tables(text, shown), encoding="utf-8")
    for title, figure, name in FIGURES:
        chart = line_chart(series(groups, figure), title, "minutes of one CPU core", title)
        chart = chart.replace("<svg ", '<svg style="background:#fff;color:#222" ', 1)
        (folder / f"learning-{name}.svg").write_text(chart, encoding="utf-8")


def with_tables(text: str, tables: dict[str, str]) -> str:
    """The document with the current table after each `<!-- table: title -->`."""

    def found_table(found: re.Match[str]) -> str:
        return f"{found[1]}\n{tables[found[2]]}"

    return re.sub(r"(<!-- table: (.*?) -->)\n(?:\|.*\n)*", found_table, text)


def in_chinese(table: str) -> str:
    head, _, rows = table.partition("\n")
    cells = [CHINESE[cell] for cell in head.strip("| ").split(" | ")]
    return "| " + " | ".join(cells) + " |\n" + rows


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
    name += ", without EMA" if weights == "last" else ""
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
    """The median, with the range if there are several values."""
    said = format(statistics.median(values), form)
    if len(values) > 1 and (low := format(min(values), form)) != (
        high := format(max(values), form)
    ):
        said += f" ({low}-{high})"
    return said


def series(groups: dict[Key, list[Line]], figure: Callable[[Line], float]) -> dict[str, Points]:
    """Medians over time: the published recipe, each learning rate of the other baseline, the
    defaults."""
    found: dict[str, Points] = defaultdict(list)
    for (name, minutes, weights), lines in sorted(groups.items()):
        if name in BASELINES:
            label = name if weights == "averaged" else f"{name}, without EMA"
        elif name in DEFAULT or name == "default":
            label = "default"
        else:
            continue
        found[label].append((minutes, statistics.median(map(figure, lines))))
    return {label: sorted(points) for label, points in found.items()}
