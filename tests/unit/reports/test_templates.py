"""The templates: they travel with the package, escape what they are given, and want all of it."""

import re
import tomllib
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from limner.reports.page import templates

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "src" / "limner"


def test_every_file_of_the_package_that_is_not_python_is_packaged() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    globs = settings["package-data"]["limner"]
    found = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    assert "reports/templates/page.html" in found
    assert [name for name in found if not any(fnmatch(name, glob) for glob in globs)] == []


def test_the_loader_finds_what_the_package_holds() -> None:
    folder = files("limner.reports").joinpath("templates")
    assert sorted(templates().list_templates()) == sorted(path.name for path in folder.iterdir())


def test_no_template_passes_anything_as_it_is() -> None:
    for name in templates().list_templates():
        text = files("limner.reports").joinpath("templates", name).read_text("utf-8")
        assert not re.search(r"\bsafe\b|autoescape", text), name


@pytest.mark.parametrize("page", ["run.html", "evaluation.html", "check.html"])
def test_a_page_without_a_value_that_it_names_is_an_error(page: str) -> None:
    with pytest.raises(UndefinedError, match="'title' is undefined"):
        templates().get_template(page).render({})
