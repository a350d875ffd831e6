"""What pages share: style sheets and programs, put into each, so that a page is one file."""

from __future__ import annotations

import re
from importlib.resources import files

PART = re.compile(r"\{\{([a-z]+\.[a-z]+)\}\}")
"""Where a page takes one in: `{{page.css}}`."""


def source(package: str, name: str) -> str:
    """A text file of a package, with the line ends of the web."""
    text = files(package).joinpath(name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")


def with_parts(page: str) -> str:
    """The text of a page with the parts that it names."""
    return PART.sub(lambda found: source("limner.apps.serving", found[1]), page)
