"""The pages that share their style and programs (tests/system opens them in a browser)."""

import re
from pathlib import Path

import pytest
from made_up import made_up_checkpoint

from limner.apps.serving.page_parts import source, with_parts
from limner.apps.web_page.build import export_web_page


@pytest.fixture(params=["play", "watch", "exported"])
def page(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "exported":
        checkpoint = made_up_checkpoint(tmp_path / "checkpoint-3")
        return export_web_page(checkpoint, tmp_path / "page.html").read_text("utf-8")
    return with_parts(source(f"limner.apps.{request.param}", f"{request.param}.html"))


def test_a_page_has_all_that_it_names(page: str) -> None:
    assert not re.search(r"\{\{[\w.]+\}\}", page)
    assert "--paper: #fdfdfb" in page
    asked = set(re.findall(r"""\$\(["'](\w+)["']\)""", page))
    assert len(asked) > 15
    assert asked <= set(re.findall(r'id="(\w+)"', page))
    named = set(re.findall(r'data-t="(\w+)"', page))
    assert len(named) > 10
    for name in named:  # in English and in Chinese
        assert len(re.findall(rf"[ {{]{name}: [`\"(\w]", page)) >= 2, name


def test_a_page_says_nothing_twice(page: str) -> None:
    """What a page has of its own is not what all share."""
    rules = re.findall(r"^([.#\w\[:][^{}\n]*) \{", page[: page.index("</style>")], re.MULTILINE)
    lines = [line.strip() for line in page.splitlines() if len(line.strip()) > 60]
    style = [line for line in lines if line.endswith("}") and line.startswith(tuple(rules))]
    assert len(style) > 20
    assert len(style) == len(set(style))


def test_a_part_that_is_missing_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        with_parts("<style>{{nothing.css}}</style>")
