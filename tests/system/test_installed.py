"""What an installed package holds: no checkout is beside it, and the folder is empty."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import TINY

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as a wheel has it."""
    library = tmp_path_factory.mktemp("library")
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(library)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return library


def limner(installed: Path, folder: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", "import limner.cli, sys; sys.exit(limner.cli.main())", *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=300
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


def test_configurations_are_found_where_no_checkout_is(installed: Path, tmp_path: Path) -> None:
    quick = [word for word in TINY if word.startswith(("training.", "model.", "sampling."))]
    quick += ["data.num_samples=24", "data.image_size=16", "training.output_dir=run"]
    said = limner(installed, tmp_path, "train", "--config", "configs/shapes.yaml", *quick)
    assert "shapes.yaml is not here; using the one that comes with Limner" in said
    assert (tmp_path / "run" / "report.html").is_file()
    limner(installed, tmp_path, "generate", "run", "a red circle", "--output", "a.png")
    assert (tmp_path / "a.png").is_file()
