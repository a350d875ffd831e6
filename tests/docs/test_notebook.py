"""examples/limner.ipynb runs from top to bottom; progress in a notebook is one line, replaced."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console
from tiny import TINY

from limner.training.monitor.progress import Progress

NOTEBOOK = Path(__file__).parents[2] / "examples" / "limner.ipynb"


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
    module.display, module.SVG = shown.display, lambda text: text
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return shown


def test_the_notebook_trains_shows_its_curve_and_draws(
    shown: Shown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_end: None
) -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    programs = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in cells)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for program in programs:
        exec(program, names)
        if "settings" in program and "minutes = " in program:
            names["settings"] = TINY
    chart, *images = shown.new
    assert chart.startswith("<svg")
    assert "no data" not in chart
    assert len(images) == 2
    assert (tmp_path / "outputs" / "notebook" / "report.html").is_file()


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
