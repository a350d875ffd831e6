"""examples/limner.ipynb runs from top to bottom; progress in a notebook is one line, replaced."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import shlex
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from readme_reader import CHOSEN
from rich.console import Console

from limner.cli import main
from limner.training.monitor.progress import Progress

NOTEBOOK = Path(__file__).parents[2] / "examples" / "limner.ipynb"


FEW = ("data.num_samples=24", "training.device=cpu", "training.compile_model=false")
SHELL = re.compile(r"^( *)[!%](.+)$", re.MULTILINE)
"""What a notebook gives to a shell, with `{name}` for what a variable holds."""


class Shown:
    """Takes the place of IPython.display, of which a test needs only what was asked of it."""

    def __init__(self) -> None:
        self.new: list[Any] = []
        self.updates: list[Any] = []

    def display(self, what: Any, **how: Any) -> Shown:
        self.new.append(what)
        return self

    def update(self, what: Any, **how: Any) -> None:
        self.updates.append(what)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    shown = Shown()
    module: Any = ModuleType("IPython.display")
    module.display, module.SVG, module.Image = shown.display, lambda text: text, PictureFile
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return shown


class PictureFile:
    """As IPython's Image."""

    def __init__(self, filename: str) -> None:
        self.path = Path(filename)
        assert self.path.is_file()


class Cells:
    """The notebook's cells, which are run one by one."""

    def __init__(self) -> None:
        self.cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
        self.names: dict[str, Any] = {"shell": self.shell}
        self.typed: list[str] = []
        """Lines that went to the shell."""

    def run(self, name: str) -> None:
        (cell,) = [cell for cell in self.cells if cell["id"] == name]
        program = SHELL.sub(lambda m: f"{m[1]}shell(f{m[2]!r})", "".join(cell["source"]))
        exec(program, self.names)

    def shell(self, line: str) -> None:
        self.typed.append(line)
        program, *words = shlex.split(line)
        if program == "limner":
            code = main(words)
            assert code == 0 or words == ["doctor"], line


def test_the_notebook_trains_shows_what_was_learned_draws_and_exports(
    shown: Shown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_end: None
) -> None:
    notebook = Cells()
    assert all(not cell.get("outputs") for cell in notebook.cells)
    monkeypatch.chdir(tmp_path)
    for cell in notebook.cells:
        if cell["cell_type"] == "code":
            notebook.run(cell["id"])
        if cell["id"] == "where":
            assert notebook.names["pictures"] == "emoji"
            notebook.names |= {"pictures": "shapes", "settings": " ".join([*CHOSEN, *FEW])}
    sheet, chart, *images = shown.new
    assert sheet.path == Path("outputs/notebook/samples.png")
    assert chart.startswith("<svg")
    assert "no data" not in chart
    assert len(images) == 2
    assert [line.split()[1] for line in notebook.typed] == ["doctor", "train", "export"]
    assert (tmp_path / "outputs" / "notebook" / "report.html").is_file()
    assert (tmp_path / "painter.safetensors").is_file()


def test_limner_is_installed_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = Cells()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    notebook.run("install")
    assert notebook.typed == ["pip install --quiet limner"]


@pytest.fixture
def colab(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Google Colab was asked for; one zip of pictures is uploaded."""
    asked: list[str] = []

    def upload() -> dict[str, bytes]:
        with zipfile.ZipFile("mine.zip", "w") as file:
            file.writestr("a.txt", "a cat")
        return {"mine.zip": Path("mine.zip").read_bytes()}

    module: Any = ModuleType("google.colab")
    module.files = SimpleNamespace(upload=upload, download=asked.append)
    module.drive = SimpleNamespace(mount=asked.append)
    monkeypatch.setitem(sys.modules, "google", ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", module)
    return asked


def test_ones_own_pictures_on_colab_and_on_kaggle(
    colab: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = {}
    for where in ("upload", "drive", "kaggle", "here"):
        notebook = Cells()
        notebook.run("settings")
        notebook.names["where"] = where
        notebook.run("where")
        found[where] = (notebook.names["pictures"], notebook.names["folder"])
        assert "emoji" not in notebook.names["settings"]
    drive = "/content/drive/MyDrive"
    assert found == {
        "upload": ("pictures", "outputs/notebook"),
        "drive": (f"{drive}/pictures", f"{drive}/limner"),
        "kaggle": ("/kaggle/input/pictures", "outputs/notebook"),
        "here": ("pictures", "outputs/notebook"),
    }
    assert Path("pictures/a.txt").read_text(encoding="utf-8") == "a cat"
    assert colab == ["/content/drive"]


def test_colab_downloads_the_model_the_drawings_and_the_report(
    colab: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = Cells()
    monkeypatch.setattr(notebook, "shell", lambda line: None)
    notebook.names |= {"folder": "run", "shell": notebook.shell}
    notebook.run("download")
    assert colab == ["painter.safetensors", "run/samples.png", "run/report.html"]


def test_progress_in_a_notebook_is_one_line_replaced_in_place(
    shown: Shown, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    clock: Callable[[], float] = lambda: now[0]  # noqa: E731
    with Progress(console=Console(force_jupyter=True), clock=clock) as progress:
        for step in range(1, 31):
            now[0] += 0.05
            progress.update(step, 100, 32 * step, 32.0, 0.5, None, None)
        logging.getLogger("limner.training").info("a checkpoint")
    assert len(shown.new) == 1
    assert 5 <= len(shown.updates) <= 8
    assert shown.updates[-1]["text/plain"].startswith("step     30/100")
    assert capsys.readouterr().out == "a checkpoint\n"
