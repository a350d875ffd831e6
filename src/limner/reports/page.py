"""Pages from the templates in `templates/`: one file each, nothing from outside.

Whatever a template is given is text and is escaped, but for charts, which are `Markup`; what it
names and is not given is an error.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from limner.console import format_duration
from limner.files.atomic import write_text_whole
from limner.reports.gauges import between, figure, share
from limner.reports.line_chart import NARROW, Points, format_tick, line_chart

Card = tuple[str, str, str]
"""A number that people ask for first: what it is, the number in words, a note."""


@cache
def templates() -> Environment:
    found = Environment(
        loader=PackageLoader("limner.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "between": between,
        "commas": "{:,.0f}".format,
        "duration": format_duration,
        "figure": figure,
        "in_words": in_words,
        "rounded": rounded,
        "share": share,
    }
    return found


def write_from(template: str, path: Path, values: dict[str, Any]) -> Path:
    """The page that a template makes of values, written whole to `path`, which is returned."""
    write_text_whole(path, templates().get_template(template).render(values))
    return path


def chart(series: dict[str, Points], title: str, x_label: str) -> dict[str, Markup]:
    """A chart of losses twice, of which the style shows the one that is legible at the width."""
    return {
        name: Markup(line_chart(series, title, x_label, "loss (log scale)", True, width))
        for name, width in (("wide", None), ("narrow", NARROW))
    }


def rounded(count: float) -> str:
    """7612416 -> 7.61M"""
    return format_tick(float(f"{count:.3g}"))


def in_words(value: Any) -> str:
    """A setting as it is written in YAML."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
