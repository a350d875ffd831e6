"""The package as it is built, and as it is installed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "NOTICE")
"""Besides src/, configs/, and integrations/, all that it is built of."""
BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, f"build_{sys.argv[1]}")(sys.argv[2]))
"""


def copied(to: Path) -> Path:
    """What the package is built from: building leaves files beside it."""
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("configs", "integrations", "src"):
        shutil.copytree(ROOT / folder, to / folder, ignore=unwanted)
    for name in PARTS:
        shutil.copy(ROOT / name, to / name)
    return to


def build(kind: str, tree: Path, to: Path) -> Path:
    """Build a wheel or an sdist, as every installer does it, by setuptools as it is here."""
    to.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-c", BUILD, kind, str(to)]
    done = subprocess.run(words, cwd=tree, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return to / done.stdout.splitlines()[-1]


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="session")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", checkout, tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package installed in it: for PYTHONPATH, before any other limner."""
    library = tmp_path_factory.mktemp("library")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    words = [*pip, "--no-compile", "--target", str(library), str(wheel)]
    done = subprocess.run(words, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return library
