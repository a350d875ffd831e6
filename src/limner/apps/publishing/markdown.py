"""Text for a model card, which Markdown and HTML show as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def plain(text: str) -> str:
    """Text that Markdown and HTML show as it is, on one line."""
    special = '\\`*_{}[]<>&|"#~$'
    return "".join(f"&#{ord(c)};" if c in special else c for c in " ".join(text.split()))


def short(value: Any) -> str:
    """A setting in few letters."""
    if isinstance(value, tuple | list):
        return ", ".join(map(short, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines, and an empty one below; cells are Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def paragraphs(said: Sequence[str]) -> list[str]:
    return [line for paragraph in said for line in (paragraph, "")]


def bullets(said: Sequence[str]) -> list[str]:
    return [*(f"- {sentence}" for sentence in said), ""] if said else []
