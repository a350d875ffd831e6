"""docs/install.md is true: the extras, the names, and what the container is made of."""

import re
import shlex
import tomllib

import pytest
from built import PARTS
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from shown import ROOT, blocks_of

from limner.apps.doctor import TORCH_INDEX
from limner.cli import build_parser
from limner.commands.common import as_overrides
from limner.config import load_config
from limner.config.loading import shipped

PAGE = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["install.md", "install.zh-CN.md"])
def test_the_table_of_extras_is_that_of_the_package(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.MULTILINE)
    told = {extra: set(re.findall(r"`([^`]+)`", packages)) for extra, packages in rows}
    extras = PROJECT["optional-dependencies"]
    assert told.pop("all") == set()
    assert set(told) == Requirement(*extras["all"]).extras
    assert told == {extra: {Requirement(one).name for one in extras[extra]} for extra in told}


def test_every_configuration_that_comes_with_it_is_named() -> None:
    section = PAGE.partition("## Configurations")[2].partition("\n## ")[0]
    assert set(shipped()) <= set(re.findall(r"`(?:--config )?(\w+)`", section))


def test_what_a_container_is_told_is_understood() -> None:
    shown = [line for block in blocks_of(PAGE) for line in block.content.splitlines()]
    lines = [shlex.split(line) for line in shown if line.startswith("docker run ")]
    assert len(lines) == 3
    for words in lines:
        image = next(word for word in words if word in ("limner", "limner:cuda"))
        assert ("--gpus" in words) == (image == "limner:cuda")
        options, rest = build_parser().parse_known_args(words[words.index(image) + 1 :])
        assert callable(options.run)
        load_config(None, as_overrides(rest))
    assert [line for line in shown if line.startswith("docker build ")] == re.findall(
        r"^#   (docker build .*)$", DOCKERFILE, re.MULTILINE
    )
    assert DOCKERFILE.count(f"{TORCH_INDEX}/") == 2


def test_the_image_is_built_of_what_the_package_is_built_of() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {line[1:] for line in ignored if line.startswith("!")}
    assert sent == {*PARTS, "src", "configs", "requirements.txt"}
    assert "*" in ignored
    bases = re.findall(r"^FROM python:([\d.]+)-slim", DOCKERFILE, re.MULTILINE)
    assert len(bases) == 2
    assert all(SpecifierSet(PROJECT["requires-python"]).contains(base) for base in bases)
    assert f"(Python {bases[0]})" in REQUIREMENTS
    assert "USER 1000" in DOCKERFILE


def test_the_versions_in_the_image_are_pinned() -> None:
    """As `grep` in Dockerfile takes them."""
    assert {"grep -v '^-e'", "grep '^torch=='"} <= set(re.findall(r"grep [^/]*'", DOCKERFILE))
    lines = [line for line in REQUIREMENTS.splitlines() if not line.startswith("-e")]
    assert all("==" in line for line in lines if not line.startswith("#"))
    assert sum(line.startswith("torch==") for line in lines) == 1
