"""Small pieces of Markdown, and the words of a page in both languages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import yaml

TRANSLATIONS = Path(__file__).parent / "chinese.yaml"
"""English sentence -> Chinese sentence. A sentence that was changed in the code is not found there
and stays English until it is translated anew, so that no translation can be of something else."""


@lru_cache
def translations() -> dict[str, str]:
    return yaml.safe_load(TRANSLATIONS.read_text(encoding="utf-8")) or {}


SAID: set[str] = set()
"""Every sentence that a Chinese page has asked for."""


def say(text: str, language: str) -> str:
    """The text in the language, if there is a translation of exactly this text."""
    plain = " ".join(text.split())
    if language != "zh":
        return plain
    SAID.add(plain)
    return translations().get(plain, plain)


def forget_the_unsaid() -> tuple[list[str], list[str]]:
    """Take translations of sentences that the code no longer has out of the file.

    Returns:
        What was taken out, and the sentences that have no translation yet.
    """
    known = translations()
    gone = sorted(set(known) - SAID)
    if gone:
        kept = {text: known[text] for text in sorted(known) if text in SAID}
        text = yaml.safe_dump(kept, allow_unicode=True, sort_keys=True, width=10**6)
        TRANSLATIONS.write_text(text, encoding="utf-8", newline="\n")
    return gone, sorted(text for text in SAID - set(known) if text)


def escaped(text: str) -> str:
    """Prose of a docstring as Markdown: what is not code shows as it is written."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"(?<!\\)([*<$|\[\]]|\b_|_\b)", r"\\\1", part)
        for part in parts
    )


def code(text: str) -> str:
    return f"`{text}`"


def row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\|", cell) for cell in cells) + " |"


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join([row(heading), "|" + "---|" * len(heading), *map(row, rows)])
