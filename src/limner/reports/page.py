"""Pages from the templates in `templates/`: self-contained HTML files.

Values are escaped, except for charts, which are `Markup`; an undefined variable is an error.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from limner.console import format_duration
from limner.evaluation.splits import adjective
from limner.files.atomic import write_text_whole
from limner.messages import parameters_in_words
from limner.reports.gauges import between, figure, share
from limner.reports.line_chart import NARROW, Points, line_chart

Card = tuple[str, str, str]
"""A headline number: label, value as text, note."""


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
        "adjective": adjective,
        "between": between,
        "commas": "{:,.0f}".format,
        "duration": format_duration,
        "figure": figure,
        "in_words": in_words,
        "rounded": parameters_in_words,
        "share": share,
    }
    return found


def write_from(template: str, path: Path, values: dict[str, Any]) -> Path:
    """Render a template, write it atomically to `path`, and return `path`."""
    write_text_whole(path, templates().get_template(template).render(values))
    return path


def chart(series: dict[str, Points], title: str, x_label: str) -> dict[str, Markup]:
    """A loss chart at two widths; the style sheet shows the one that fits the screen."""
    return {
        name: Markup(line_chart(series, title, x_label, "loss (log scale)", True, width))
        for name, width in (("wide", None), ("narrow", NARROW))
    }


def in_words(value: Any) -> str:
    """A setting as text, as in YAML."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
