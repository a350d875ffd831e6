"""Escaping of text for a model card."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup as Markdown

__all__ = ["Markdown", "plain", "short", "templates"]


def plain(text: str) -> Markdown:
    """Escape text for Markdown and HTML, on one line."""
    special = '\\`*_{}[]<>&|"#~$'
    shown = "".join(f"&#{ord(c)};" if c in special else c for c in " ".join(text.split()))
    return Markdown(shown)


def short(value: Any) -> str:
    """A setting in short form."""
    if isinstance(value, tuple | list):
        return ", ".join(map(short, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


@cache
def templates() -> Environment:
    """Templates escape all values with `plain`, except for `Markdown`."""
    return Environment(
        loader=PackageLoader("limner.apps.publishing"),
        # `finalize` returns markup, so that it is not escaped again.
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markdown) else plain(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
