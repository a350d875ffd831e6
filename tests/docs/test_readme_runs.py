"""Every command of the README and the tour is run by the package as it is installed; the reader is
support/readme_reader.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from readme_reader import BLOCKS, NOT_HERE, PAGES
from shown import ROOT, Told


@pytest.fixture(scope="module")
def told(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    folder = tmp_path_factory.mktemp("readme") / "work"
    program = ROOT / "tests" / "support" / "readme_reader.py"
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, str(program), str(folder)],
        cwd=folder.parent,
        env=environment,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((folder.parent / "told.json").read_text(encoding="utf-8"))
    assert Path(found["package"]).is_relative_to(installed)
    return Told(folder, found["printed"], found["commands"])


def test_every_command_that_is_shown_was_run(told: Told) -> None:
    shown = [line for b in BLOCKS if b.language == "bash" for line in b.content.splitlines()]
    lines = [line.partition(" #")[0].strip() for line in shown]
    commands = [part for line in lines if line[:1] not in ("", "#") for part in line.split(" && ")]
    ran = [" ".join(words) for words in told.commands]
    assert [command.replace('"', "") for command in commands] == ran
    assert len(ran) > 20
    assert set(NOT_HERE) <= set(ran)


def test_the_commands_leave_what_they_say(told: Told) -> None:
    for name in (
        *("outputs/photos/train.yaml", "outputs/photos/samples.png", "outputs/photos/report.html"),
        *("apple.png", "output-0.png", "output-sheet.png", "a.png", "played.html"),
        *("outputs/report.html", "outputs/demo/evaluation/evaluation.html"),
        *("vae/config.json", "painter.safetensors", "painter/model_index.json"),
        *("outputs/latents/report.html", "outputs/own-latents/report.html"),
        *("outputs/demo/checkpoint-1000/sweep.json", "prepared/metadata.json"),
    ):
        assert (told.folder / name).is_file(), name
    assert list((told.folder / "cache").glob("*"))
    assert "resumed at step" in told.printed
    assert "kernel distance" in told.printed


def test_the_configurations_are_those_of_the_package(told: Told) -> None:
    for name in ("train_config", "latents"):
        assert f"configs{os.sep}{name}.yaml is not here; using the one that comes" in told.printed
    assert not (told.folder / "configs").exists()


def test_what_is_not_run_is_still_shown() -> None:
    for line in NOT_HERE:
        assert any(line in page for page in PAGES)
