"""`limner check-data FOLDER` judges pictures by the size that `limner train FOLDER` chooses."""

import json
from pathlib import Path

import photo_folders
import pytest
from PIL import Image

from limner.cli import main


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures of 80 pixels, and one that is smaller than they are trained at."""
    folder = photo_folders.photos(tmp_path / "photos")
    for number, name in enumerate("abcdefgh"):
        Image.new("RGB", (80, 80), (30 * number, 90, 200)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"picture {name}", encoding="utf-8")
    Image.effect_noise((70, 70), 90).convert("RGB").save(folder / "small.png")
    (folder / "small.txt").write_text("a small one", encoding="utf-8")
    return folder


def checked(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    main(["check-data", *words, "--json"])
    return json.loads(capsys.readouterr().out)


def test_a_folder_is_judged_as_it_would_be_trained(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = checked(capsys, str(photos), "--output", str(tmp_path / "check"))
    assert found["settings"]["data.image_size"] == 80
    kinds = {one["kind"]: one["first"] for one in found["findings"]}
    assert [row["key"] for row in kinds["small-picture"]] == ["small.png"]


def test_what_was_set_counts(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = str(photos), "data.image_size=64", "--output", str(tmp_path / "check")
    found = checked(capsys, *words)
    assert found["settings"]["data.image_size"] == 64
    assert "small-picture" not in {one["kind"] for one in found["findings"]}
