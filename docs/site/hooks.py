"""What mkdocs is told: where the pages are, how they are navigated, and formulas as MathML."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from staging import ROOT, stage

PAGES = ROOT / "build" / "pages"
FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<tex>.*?)\\[)\]]</(?P=tag)>',
    re.DOTALL,
)


def on_config(config: Any) -> Any:
    """Stage the pages, once for all languages."""
    if config.docs_dir != str(PAGES):
        config.nav = stage(PAGES)
        config.docs_dir = str(PAGES)
    return config


def on_page_content(content: str, **_: Any) -> str:
    """Every formula of a page as MathML, which browsers draw by themselves."""

    def mathml(match: re.Match[str]) -> str:
        display = "block" if match["open"] == "[" else "inline"
        formula = convert(html.unescape(match["tex"]).strip(), display=display)
        return f'<div class="formula">{formula}</div>' if display == "block" else formula

    return FORMULA.sub(mathml, content)


def on_post_page(output: str, **_: Any) -> str:
    """Machines may know the other languages of a page; the theme's script, which looks for
    rel="alternate" and nothing else, would ask for a sitemap in the folder of each."""
    return re.sub(r'<link rel="?alternate"?(?= )', '<link rel="alternate "', output)


def on_serve(server: Any, **_: Any) -> Any:
    """Look at the documents where they are written."""
    for name in ("README.md", "README.zh-CN.md", "CHANGELOG.md", "docs", "benchmarks/README.md"):
        server.watch(str(ROOT / name))
    return server
