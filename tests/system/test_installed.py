"""What an installed package holds: no checkout is beside it, and the folder is empty.

Shown commands are run with it by tests/docs/test_readme_runs.py.
"""

import os
import re
import runpy
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest
from built import ROOT, build
from tiny import TINY

README = (ROOT / "README.md").read_text(encoding="utf-8")
LINKS = re.compile(r"\]\((?!https?:|#)([^)]+)\)")


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist()}


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    (text,) = [t for name, t in contents(wheel).items() if name.endswith(".dist-info/METADATA")]
    return message_from_string(text.decode("utf-8"))


def run(installed: Path, folder: Path, words: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_every_file_of_the_package_is_in_it(installed: Path) -> None:
    def files(folder: Path) -> set[str]:
        found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        return {name for name in found if "__pycache__" not in name}

    there = files(installed / "limner")
    assert files(ROOT / "src" / "limner") <= there
    assert {f"configs/{path.name}" for path in (ROOT / "configs").iterdir()} <= there
    tops = {path.name.partition("-")[0] for path in installed.iterdir()} - {"bin", "Scripts"}
    assert tops == {"limner"}


def test_a_wheel_made_of_the_sdist_is_that_of_the_checkout(
    wheel: Path, checkout: Path, tmp_path: Path
) -> None:
    with tarfile.open(build("sdist", checkout, tmp_path)) as file:
        file.extractall(tmp_path, filter="data")
    (unpacked,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    nodes = "integrations/comfyui/limner_nodes.py"
    assert (unpacked / nodes).read_bytes() == (ROOT / nodes).read_bytes()
    again = build("wheel", unpacked, tmp_path / "again")
    assert again.name == wheel.name
    first, second = contents(wheel), contents(again)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_a_configuration_is_found_by_its_name_where_no_checkout_is(
    installed: Path, tmp_path: Path
) -> None:
    quick = [word for word in TINY if word.startswith(("training.", "model.", "sampling."))]
    quick += ["data.num_samples=24", "data.image_size=16", "training.output_dir=run"]
    limner = [sys.executable, "-m", "limner"]
    said = run(installed, tmp_path, [*limner, "train", "--config", "shapes", *quick])
    assert "shapes is the configuration of this name that comes with Limner" in said
    assert (tmp_path / "run" / "report.html").is_file()


def test_the_program_is_called_as_the_package(installed: Path, tmp_path: Path) -> None:
    """So that `uvx limner` and `pipx run limner` need nothing else."""
    (program,) = [path for folder in ("bin", "Scripts") for path in (installed / folder).glob("*")]
    assert program.stem == "limner"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert run(installed, tmp_path, [str(program), "--version"]) == f"limner {version}\n"


def test_the_metadata_say_what_an_index_shows(metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE", "NOTICE"]
    assert metadata["Description-Content-Type"].partition(";")[0] == "text/markdown"
    shown = metadata.get_payload()
    assert "pip install limner && limner demo" in shown
    assert LINKS.findall(shown) == []
    assert "questions ·" in shown


def test_links_lead_to_the_repository_where_its_address_is_known() -> None:
    shown = runpy.run_path(str(ROOT / "setup.py"))["description"](README, "https://example.org/me")
    assert LINKS.findall(shown) == []
    assert "[questions](https://example.org/me/blob/HEAD/docs/faq.md)" in shown
    assert "![What the demo drew](https://example.org/me/raw/HEAD/docs/images/demo.png)" in shown
    assert shown.count("https://example.org/me/") == len(LINKS.findall(README))
