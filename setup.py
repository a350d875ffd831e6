"""Only what pyproject.toml cannot say: the configurations of configs/ come along in the package,
and README.md is turned into what an index shows, where nothing lies beside it."""

import re
import shutil
import tomllib
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)\s]+)\)")


class WithConfigurations(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # where the checkout itself is at hand
            target = Path(self.build_lib) / "limner" / "configs"
            shutil.copytree(HERE / "configs", target, dirs_exist_ok=True)


def repository() -> str:
    """Its address, if pyproject.toml names one; else an empty text."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project.get("urls", {}).get("Repository", "")).rstrip("/")


def description(readme: str, repository: str) -> str:
    """README.md as an index shows it.

    Links and pictures lead to the repository. Where its address is not known, a link is its words
    alone, and a picture is left out. Limner is installed by its name.
    """

    def led(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        if not repository:
            return "" if picture else words
        return f"{picture}[{words}]({repository}/{'raw' if picture else 'blob'}/HEAD/{target})"

    installed = readme.replace("pip install -r requirements.txt &&", "pip install limner &&")
    return LINK.sub(led, installed)


if __name__ == "__main__":
    setup(
        cmdclass={"build_py": WithConfigurations},
        long_description=description((HERE / "README.md").read_text("utf-8"), repository()),
        long_description_content_type="text/markdown",
    )
