"""The reference, written from the code: `python docs/generate.py`; tests compare it with the code.

docs/reference/config.md from the types and docstrings of every key, cli.md from the flags of every
command, api.md from public docstrings; each in both languages, as far as generating/chinese.yaml
has the Chinese of a sentence. What it still lacks is printed.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "generating"))
sys.path.insert(0, str(HERE.parent / "src"))

from api_pages import api_page  # noqa: E402
from cli_pages import cli_page  # noqa: E402
from config_pages import config_page  # noqa: E402
from markdown_pieces import forget_the_unsaid  # noqa: E402

PAGES = {"config": config_page, "cli": cli_page, "api": api_page}


def pages() -> dict[Path, str]:
    """Every page of the reference, by its path."""
    return {
        HERE / "reference" / f"{name}{suffix}.md": linked(
            page(language), f"[{other}]({name}{to}.md)"
        )
        for name, page in PAGES.items()
        for language, suffix, other, to in (
            ("en", "", "中文", ".zh-CN"),
            ("zh", ".zh-CN", "English", ""),
        )
    }


def linked(page: str, link: str) -> str:
    """The page with a link to its other language under the title."""
    title, _, rest = page.partition("\n\n")
    return f"{title}\n\n{link}\n\n{rest}"


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
        print(path.relative_to(HERE.parent))
    gone, missing = forget_the_unsaid()
    for heading, sentences in (("no longer said", gone), ("not yet in Chinese", missing)):
        for sentence in sentences:
            print(f"{heading}: {sentence}")
