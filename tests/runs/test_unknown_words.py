"""Words that no training caption has: what a model keeps, and where it says so."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.single_file import WeightsFile
from limner.cli import main
from limner.config import Config
from limner.errors import LimnerError
from limner.inference.generator import ImageGenerator
from limner.text.known_words import KnownWords, words_in
from limner.training.trainer import Trainer

SAID = "is in no caption that this model was trained on"


@pytest.fixture
def own(tmp_path: Path) -> str:
    """Somebody's own pictures, as an override."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(8):
        Image.new("RGB", (16, 16), (number * 30, 0, 99)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a confidential walrus", "utf-8")
    return f"data.dataset_path='{folder}'"


def of_own(build: Callable[..., Config], own: str, *more: str) -> Config:
    return build("data.dataset_name=null", "data.num_samples=null", own, *more)


def saved(trainer: Trainer, folder: Path) -> Checkpoint:
    return Checkpoint.open(trainer.save_checkpoint(folder))


def forget(checkpoint: Path) -> None:
    """As an earlier version wrote it."""
    (checkpoint / "words.json").unlink()
    manifest = json.loads((checkpoint / "manifest.json").read_text("utf-8"))
    del manifest["files"]["words.json"]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest), "utf-8")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_a_checkpoint_keeps_the_words_of_all_training_captions(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    trainer = Trainer(tiny_config())
    words = saved(trainer, tmp_path / "final").words
    assert words is not None
    assert words.complete
    captions = [c for row in trainer.data.trained.rows for c in row.captions]
    assert set(words.words) == {word for caption in captions for word in words_in(caption)}


def test_generate_names_them_once_and_draws(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [str(trained / "outputs"), "a red elephant", "--num_images", "3", "--output"]
    assert main(["generate", *words, str(tmp_path / "a.png")]) == 0
    assert warnings_of(caplog) == [f'"elephant" {SAID}']
    assert len(list(tmp_path.glob("a-*.png"))) == 3
    caplog.clear()
    assert main(["generate", *words[:1], "a red circle", *words[-1:], str(tmp_path / "b.png")]) == 0
    assert warnings_of(caplog) == []


def test_the_negative_prompt_counts(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [str(trained / "outputs"), "a red circle", "--negative_prompt", "elephant"]
    assert main(["generate", *words, "--output", str(tmp_path / "a.png")]) == 0
    assert warnings_of(caplog) == [f'"elephant" {SAID}']


def test_a_fine_tuned_model_knows_the_words_of_both(
    tiny_config: Callable[..., Config], own: str, trained: Path, tmp_path: Path
) -> None:
    origin = f"training.init_from='{trained / 'outputs'}'"
    trainer = Trainer(of_own(tiny_config, own, origin))
    words = saved(trainer, tmp_path / "final").words
    assert words is not None
    assert words.unknown_in("a confidential red circle, walrus, elephant") == ["elephant"]


def test_a_resumed_run_keeps_them_and_adds_those_of_other_data(
    tiny_config: Callable[..., Config], own: str, trained: Path, tmp_path: Path
) -> None:
    config = tiny_config(f"training.init_from='{trained / 'outputs'}'")
    first = saved(Trainer(config), Path(config.training.output_dir) / "checkpoint-1")
    again = Trainer(config, resume=first.folder)
    assert again.run.words == first.words
    again.run.lock.release()
    elsewhere = f"training.output_dir='{tmp_path / 'elsewhere'}'"
    other = Trainer(of_own(tiny_config, own, elsewhere), resume=first.folder)
    assert other.run.words is not None
    assert other.run.words.unknown_in("a red walrus and an elephant") == ["elephant"]


def test_of_a_model_without_a_list_nothing_is_said(
    tiny_config: Callable[..., Config], own: str, tmp_path: Path
) -> None:
    old = saved(Trainer(tiny_config()), tmp_path / "old").folder
    forget(old)
    assert Checkpoint.open(old).words is None
    assert ImageGenerator(old).notes(["elephant"]) == []
    # Nobody knows what else its text encoder knows.
    place = f"training.output_dir='{tmp_path / 'new'}'", f"training.init_from='{old}'"
    assert Trainer(of_own(tiny_config, own, *place)).run.words is None


def test_a_damaged_list_is_refused_as_any_file_of_a_checkpoint(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    folder = saved(Trainer(tiny_config()), tmp_path / "final").folder
    path = folder / "words.json"
    path.write_bytes(path.read_bytes().replace(b"red", b"rad"))
    with pytest.raises(LimnerError, match=r"damaged: .*words\.json is not what was written"):
        ImageGenerator(folder)


def exported(folder: Path, path: Path) -> KnownWords | None:
    assert main(["export", str(folder), "--output", str(path)]) == 0
    return WeightsFile.open(path).words


def test_a_file_of_public_data_has_them(trained: Path, tmp_path: Path) -> None:
    words = exported(trained / "outputs", tmp_path / "a.safetensors")
    assert words == Checkpoint.open(trained / "outputs").words
    assert ImageGenerator(tmp_path / "a.safetensors").notes(["elephant"]) == [f'"elephant" {SAID}']
    assert exported(tmp_path / "a.safetensors", tmp_path / "b.safetensors") == words


def test_a_file_of_private_data_has_none_even_if_they_were_learned_before(
    tiny_config: Callable[..., Config], own: str, tmp_path: Path
) -> None:
    private = saved(Trainer(of_own(tiny_config, own)), tmp_path / "private").folder
    assert exported(private, tmp_path / "a.safetensors") is None
    assert b'"words"' not in (tmp_path / "a.safetensors").read_bytes()

    place = f"training.output_dir='{tmp_path / 'new'}'", f"training.init_from='{private}'"
    after = saved(Trainer(tiny_config(*place)), tmp_path / "after")
    assert after.words is not None
    assert after.words.unknown_in("a red walrus") == []
    assert exported(after.folder, tmp_path / "b.safetensors") is None


def test_what_is_published_of_private_data_has_none(
    tiny_config: Callable[..., Config], own: str, tmp_path: Path
) -> None:
    private = saved(Trainer(of_own(tiny_config, own)), tmp_path / "private").folder
    kept = tmp_path / "published"
    words = ["--repo", "me/new", "--dry-run", "--prompt", "a circle", "--output", str(kept)]
    assert main(["publish", str(private), *words]) == 0
    assert WeightsFile.open(kept / "limner.safetensors").words is None
    for path in kept.rglob("*"):
        assert path.name != "words.json"
