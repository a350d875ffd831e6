"""Checkpoints: whole or not there, read without running anything, clear about what is wrong."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limner.checkpoint import folder as checkpoint_module
from limner.checkpoint import manifest
from limner.checkpoint.folder import Checkpoint, Contents, load_tensors, save_checkpoint
from limner.checkpoint.locate import FILES, checkpoints, find_checkpoint
from limner.checkpoint.manifest import MANIFEST
from limner.checkpoint.state import TrainingState
from limner.config import Config, load_config
from limner.errors import LimnerError
from limner.inference.generator import ImageGenerator
from limner.models.text_to_image import build_model
from limner.text.tokenizer import CaptionTokenizer
from limner.training.optimizer import build_optimizers
from limner.training.trainer import Trainer


class Saved:
    """A small model with its optimizers, and `save` to write it where one likes."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(0)
        self.config = config
        self.tokenizer = CaptionTokenizer.learn(["a red circle"], 300, 24)
        self.model = build_model(config, self.tokenizer.vocab_size)
        self.averaged = build_model(config, self.tokenizer.vocab_size)
        self.optimizers = build_optimizers(self.model, config)
        self.state = TrainingState(7, 28, 1.5, 100, 70)

    def save(self, folder: Path, averaged: bool = True) -> Path:
        contents = Contents.of(
            self.model,
            self.averaged if averaged else None,
            self.optimizers,
            self.tokenizer,
            self.config,
            self.state,
        )
        return save_checkpoint(folder, contents)


@pytest.fixture
def saved(tiny_config: Callable[..., Config]) -> Saved:
    return Saved(tiny_config())


def weights_in(folder: Path, averaged: bool) -> dict[str, torch.Tensor]:
    opened = Checkpoint.open(folder)
    model = build_model(opened.config, opened.tokenizer.vocab_size)
    opened.load_weights(model, averaged)
    return model.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_what_is_saved_is_what_is_loaded(saved: Saved, tmp_path: Path) -> None:
    folder = saved.save(tmp_path / "checkpoint-7")
    assert {path.name for path in folder.iterdir()} == {*FILES, "tokenizer.json", "ema.safetensors"}
    assert {"model.pt", "optimizer.pt", "training_state.json"} <= set(FILES)
    opened = Checkpoint.open(folder)
    assert opened.config == saved.config
    assert opened.state == saved.state
    assert torch.equal(opened.tokenizer("a red circle"), saved.tokenizer("a red circle"))
    assert same(weights_in(folder, averaged=False), saved.model.state_dict())
    assert same(weights_in(folder, averaged=True), saved.averaged.state_dict())
    assert not same(saved.averaged.state_dict(), saved.model.state_dict())
    without = saved.save(tmp_path / "checkpoint-8", averaged=False)
    assert same(weights_in(without, averaged=True), saved.model.state_dict())


def test_a_run_folder_stands_for_its_newest_checkpoint(saved: Saved, tmp_path: Path) -> None:
    for step in (900, 1000, 20):
        saved.save(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-2000").mkdir()  # not complete
    (tmp_path / "checkpoint-new").mkdir()
    (tmp_path / "config.yaml").write_text(saved.config.to_yaml(), encoding="utf-8")
    assert [path.name for path in checkpoints(tmp_path)] == [
        "checkpoint-20",
        "checkpoint-900",
        "checkpoint-1000",
    ]
    newest = tmp_path / "checkpoint-1000"
    assert find_checkpoint(tmp_path) == find_checkpoint(newest) == newest
    assert find_checkpoint(newest / "model.pt") == newest
    assert find_checkpoint(str(tmp_path / "checkpoint-20")).name == "checkpoint-20"


# Written whole


@pytest.mark.parametrize(
    "failing", ["model.pt", "optimizer.pt", "ema.safetensors", "the tokenizer"]
)
def test_a_failure_while_saving_leaves_the_older_checkpoint(
    failing: str, saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = saved.save(tmp_path / "checkpoint-7")
    before = {path.name: path.read_bytes() for path in old.iterdir()}

    def fail(what: Any, path: Path) -> None:
        if failing in (path.name, "the tokenizer"):
            path.write_bytes(b"half")
            raise OSError("No space left on device")
        torch_save(what, path) if path.suffix == ".pt" else save_file(what, path)

    torch_save, save_file = torch.save, checkpoint_module.save_file
    if failing == "the tokenizer":
        monkeypatch.setattr(CaptionTokenizer, "save", fail)
    else:
        monkeypatch.setattr(torch, "save", fail)
        monkeypatch.setattr(checkpoint_module, "save_file", fail)
    for name in ("checkpoint-7", "checkpoint-8"):  # in its place, and beside it
        with pytest.raises(OSError, match="No space left"):
            saved.save(tmp_path / name)
        assert checkpoints(tmp_path) == [old]
        assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    monkeypatch.undo()
    saved.save(tmp_path / "checkpoint-8")
    assert [path.name for path in tmp_path.iterdir() if "8" in path.name] == ["checkpoint-8"]


def test_saving_again_replaces_a_checkpoint(saved: Saved, tmp_path: Path) -> None:
    folder = saved.save(tmp_path / "final")
    saved.state = replace(saved.state, step=8)
    (folder / "notes.txt").write_text("left behind", encoding="utf-8")
    saved.save(folder, averaged=False)
    assert Checkpoint.open(folder).state.step == 8
    assert {path.name for path in folder.iterdir()} == {*FILES, "tokenizer.json"}
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == ["final"]


def test_no_other_folder_is_ever_replaced(saved: Saved, tmp_path: Path) -> None:
    run = tmp_path / "outputs"
    saved.save(run / "checkpoint-7")
    (run / "log.jsonl").write_text("{}", encoding="utf-8")
    with pytest.raises(LimnerError, match="outputs already exists and is not a checkpoint"):
        saved.save(run)
    assert (run / "log.jsonl").is_file()
    assert checkpoints(run)


def test_older_checkpoints_go_when_a_newer_one_is_safe(tiny_config: Callable[..., Config]) -> None:
    trainer = Trainer(tiny_config("training.save_steps=1", "training.checkpoints_total_limit=2"))
    trainer.train()
    assert [path.name for path in checkpoints(trainer.folder)] == ["checkpoint-5", "checkpoint-6"]


# Damaged, foreign, malicious


class Payload:
    """A pickle of this creates a file when it is loaded without care."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("kind", ["torch", "pickle"])
@pytest.mark.parametrize("name", ["model.pt", "optimizer.pt"])
def test_a_payload_is_refused_and_not_run(
    name: str,
    kind: str,
    tiny_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config()
    folder = Saved(config).save(Path(config.training.output_dir) / "checkpoint-7")
    victim = tmp_path / "victim"
    evil = {"adamw": Payload(victim)}
    if kind == "torch":
        torch.save(evil, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(evil, protocol=2))
    monkeypatch.setattr(manifest, "_is_complete", lambda path: True)
    (folder / MANIFEST).unlink()
    manifest.seal(folder)  # a stranger can write a manifest, too
    with pytest.raises(
        LimnerError,
        match=rf"{name} is damaged, or was rejected because it contains more than weights",
    ):
        Trainer(config, resume="latest")
    assert not victim.exists()
    torch.load(folder / name, weights_only=False) if kind == "torch" else pickle.loads(
        (folder / name).read_bytes()
    )
    assert victim.exists()  # it would have worked


@pytest.mark.parametrize("name", ["model.pt", "optimizer.pt", "ema.safetensors"])
@pytest.mark.parametrize("left", [0, 7, 0.4, 0.99])
def test_a_file_cut_short_is_named(
    left: float, name: str, tiny_config: Callable[..., Config]
) -> None:
    config = tiny_config()
    path = Saved(config).save(Path(config.training.output_dir) / "checkpoint-7") / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(left if left >= 1 else left * len(whole))])
    with pytest.raises(LimnerError, match=name.replace(".", r"\.")):
        Trainer(config, resume="latest")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save(torch.ones(3), tmp_path / "model.pt")
    with pytest.raises(LimnerError, match=r"model\.pt contains a Tensor"):
        load_tensors(tmp_path / "model.pt")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, saved: Saved, tmp_path: Path) -> None:
    folder = saved.save(tmp_path / "final")
    (folder / name).unlink()
    with pytest.raises(LimnerError, match=f"final is not a complete checkpoint: {name} missing"):
        ImageGenerator(folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("training_state.json", '{"step": 3'),
        ("training_state.json", '{"stepp": 3}'),
        ("training_state.json", "[1, 2]"),
        ("config.yaml", "model: {hidden_size: many}"),
        ("config.yaml", "model: [1"),
        ("tokenizer.json", "{}"),
    ],
)
def test_a_damaged_text_file_is_named(name: str, text: str, saved: Saved, tmp_path: Path) -> None:
    folder = saved.save(tmp_path / "final")
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(LimnerError, match=name.replace(".", r"\.")):
        Checkpoint.open(folder)


def test_weights_of_another_model_are_named_one_by_one(saved: Saved, tmp_path: Path) -> None:
    folder = saved.save(tmp_path / "final")
    other = load_config(saved.config.model_dump(), ["model.hidden_size=128", "model.num_layers=1"])
    (folder / "config.yaml").write_text(other.to_yaml(), encoding="utf-8")
    with pytest.raises(LimnerError) as error:
        ImageGenerator(folder)
    assert "ema.safetensors does not fit the model its configuration describes" in str(error.value)
    assert ": (64, " in str(error.value)
    assert "... and " in str(error.value)


def test_drawing_with_a_configuration_of_another_model_names_what_differs(
    saved: Saved, tmp_path: Path
) -> None:
    folder = saved.save(tmp_path / "final")
    ImageGenerator(folder, config=saved.config)
    other = load_config(saved.config.model_dump(), ["model.architecture=dit", "model.num_heads=4"])
    with pytest.raises(LimnerError) as error:
        ImageGenerator(folder, config=other)
    lines = [line.strip() for line in str(error.value).splitlines() if "in the checkpoint," in line]
    assert lines == [
        "- model.architecture: 'modern' in the checkpoint, 'dit' in the configuration",
        "- model.num_heads: 2 in the checkpoint, 4 in the configuration",
    ]


def test_nothing_there_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(LimnerError, match=r"no checkpoint at .*nowhere"):
        ImageGenerator(tmp_path / "nowhere")
    (tmp_path / "all" / "run" / "checkpoint-3").mkdir(parents=True)
    with pytest.raises(LimnerError, match=r"it contains runs, such as .*run$"):
        find_checkpoint(tmp_path / "all")
    with pytest.raises(LimnerError, match="is not a complete checkpoint"):
        ImageGenerator(tmp_path)


# To share


def test_a_trainer_saves_what_a_generator_draws_from(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(tiny_config())
    trainer.train()
    monkeypatch.chdir(tmp_path)
    trainer.save_checkpoint("./outputs/final")
    shutil.rmtree(trainer.folder)  # the checkpoint stands alone
    drawn = ImageGenerator("./outputs/final", device="cpu").generate("a red circle", seed=42)
    assert drawn.size == (16, 16)
    assert np.asarray(drawn).std() > 1
    state = json.loads(Path("outputs/final/training_state.json").read_text(encoding="utf-8"))
    assert (state["step"], state["images"]) == (6, 24)


@pytest.mark.parametrize("name", ["training_state.json", "tokenizer.json"])
def test_what_is_read_in_words_is_verified_too(name: str, saved: Saved, tmp_path: Path) -> None:
    older, newer = (saved.save(tmp_path / "run" / f"checkpoint-{step}") for step in (3, 6))
    text = (newer / name).read_text("utf-8")
    other = text.replace(": 28", ": 29") if "images" in text else text.replace(":257", ":256")
    assert other != text
    (newer / name).write_text(other, "utf-8")
    with pytest.raises(LimnerError, match=f"{name} is not what was written"):
        Checkpoint.open(newer)
    assert find_checkpoint(tmp_path / "run") == older
