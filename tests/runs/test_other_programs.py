"""YAML files written for other programs load; what differs is said, and a typo is an error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import emoji_formats
import pytest
import torch
from contract import shows
from pretrained import tiny_autoencoder

from limner import Trainer
from limner.checkpoint.locate import checkpoints
from limner.config import Config, load_config
from limner.config.notes import notes
from limner.data.open import open_image_dataset
from limner.errors import LimnerError
from limner.pretrained import autoencoder
from limner.training.monitor.run_log import read_log

Build = Callable[..., Config]


def sizes(config: Config) -> tuple[int, int]:
    return config.model.hidden_size, config.model.num_heads


@shows("model.attention_head_dim")
def test_the_width_of_a_head_fits_or_decides_what_was_left_open() -> None:
    given = {"hidden_size": 512, "num_heads": 8, "attention_head_dim": 64}
    assert sizes(load_config({"model": given})) == (512, 8)
    for left_out in ("hidden_size", "num_heads"):
        rest = {key: value for key, value in given.items() if key != left_out}
        assert sizes(load_config({"model": rest})) == (512, 8)
    assert sizes(load_config({"model": {"attention_head_dim": 32}})) == (384, 12)
    with pytest.raises(LimnerError) as refused:
        load_config({"model": given | {"attention_head_dim": 72}})
    message = str(refused.value)
    assert "model.attention_head_dim" in message
    assert all(number in message for number in (" 8 heads", " 72 ", " 576,", " 512;"))


@shows("model.activation_fn", "model.norm_eps", "model.attention_bias")
@pytest.mark.parametrize("architecture", ["modern", "dit"])
def test_what_an_architecture_does_not_leave_open_is_accepted_with_a_note(
    architecture: str,
) -> None:
    def noted(**model: Any) -> str:
        return "\n".join(notes(load_config({"model": {"architecture": architecture, **model}})))

    own = {"modern": ("swiglu", False), "dit": ("gelu-approximate", True)}[architecture]
    assert noted() == noted(activation_fn=own[0], attention_bias=own[1], norm_eps=1e-6) == ""
    other = {"modern": "gelu-approximate", "dit": "geglu"}[architecture]
    said = noted(activation_fn=other, attention_bias=not own[1], norm_eps=1e-5)
    assert f"model.activation_fn is '{other}'" in said
    assert f"`{architecture}` always uses {own[0]}" in said
    assert f"model.norm_eps is 1e-05, but the architecture `{architecture}`" in said
    assert f"always uses {'biases' if own[1] else 'no biases'}" in said


@pytest.mark.parametrize(
    ("key", "value"),
    [("activation_fn", "gelu-aproximate"), ("norm_eps", -1), ("attention_bias", "often")],
)
def test_a_value_that_means_nothing_is_an_error(key: str, value: object) -> None:
    with pytest.raises(LimnerError, match=f"model.{key}"):
        load_config({"model": {key: value}})
    with pytest.raises(LimnerError, match=f"did you mean model.{key}"):
        load_config({"model": {key + "x": value}})


def test_the_notes_are_said_at_the_start_of_a_run(tiny_config: Build) -> None:
    trainer = Trainer(tiny_config("model.activation_fn=geglu", "training.max_steps=1"))
    trainer.train()
    said = [e["message"] for e in read_log(trainer.folder / "log.jsonl") if e["kind"] == "event"]
    assert [m for m in said if "geglu" in m] == [n for n in notes(trainer.config) if "geglu" in n]


def test_the_section_model_may_be_called_dit(tmp_path: Path) -> None:
    path = tmp_path / "dit.yaml"
    path.write_text("dit:\n  hidden_size: 128\n  num_heads: 4\n", encoding="utf-8")
    assert load_config(path) == load_config({"model": {"hidden_size": 128, "num_heads": 4}})
    assert load_config(path, ["dit.num_layers=3"]).model.num_layers == 3
    assert load_config(None, ["dit.num_layers=3"]).model.num_layers == 3
    # Both, as long as they do not contradict each other; a typo is named in the section's own name.
    both = {"dit": {"num_layers": 3}, "model": {"num_layers": 3, "dropout": 0.1}}
    assert load_config(both) == load_config({"model": both["model"]})
    with pytest.raises(LimnerError, match=r"dit\.num_layers is 4 and model\.num_layers is 3"):
        load_config({"dit": {"num_layers": 4}, "model": {"num_layers": 3}})
    with pytest.raises(LimnerError, match=r"model\.num_layer is not a known key"):
        load_config({"dit": {"num_layer": 4}})
    with pytest.raises(LimnerError, match=r"dit is not a known key|a section with keys"):
        load_config({"dit": 4})


@shows("training.save_every_n_epochs")
@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        # 23 trained pictures in updates of 4: epochs end within updates 6, 12, 18, 23.
        (["training.save_every_n_epochs=1"], [6, 12, 18, 23, 24]),
        (["training.save_every_n_epochs=2"], [12, 23, 24]),
        (["training.save_every_n_epochs=2", "training.save_steps=10"], [10, 12, 20, 23, 24]),
        (["training.save_every_n_epochs=9"], [24]),
        # An update of 24 is more than an epoch.
        (["training.save_every_n_epochs=1", "training.batch_size=24"], [*range(1, 25)]),
    ],
)  # fmt: skip
def test_a_checkpoint_whenever_so_many_epochs_are_complete(
    settings: list[str], steps: list[int], tiny_config: Build
) -> None:
    base = "training.max_steps=24", "training.save_steps=null", "training.keep_best=false"
    config = tiny_config(*base, "training.checkpoints_total_limit=null", *settings)
    trainer = Trainer(config)
    assert len(trainer.data.trained.rows) == 23
    trainer.train()
    assert [int(c.name.split("-")[1]) for c in checkpoints(trainer.folder)] == steps


def test_one_of_the_two_is_enough(tiny_config: Build) -> None:
    assert load_config({}).training.save_steps == 1000
    assert load_config({"training": {"save_every_n_epochs": 5}}).training.save_steps is None
    both = {"training": {"save_every_n_epochs": 5, "save_steps": 70}}
    assert load_config(both).training.save_steps == 70


@shows("vae.use_tiling")
def test_tiling_decodes_in_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiled: list[bool] = []

    @contextlib.contextmanager
    def in_strips(model: object) -> Iterator[None]:
        tiled[-1] = True
        yield

    monkeypatch.setattr(autoencoder, "in_strips", in_strips)
    folder = str(tiny_autoencoder(tmp_path / "vae"))
    for wanted in (False, True):
        tiled.append(False)
        settings = {"vae": {"pretrained_model_name": folder, "use_tiling": wanted}}
        space = autoencoder.PretrainedAutoencoder(load_config(settings).vae)
        space.load(torch.device("cpu"), torch.float32)
        space.decode(torch.zeros(1, space.channels, 4, 4))
        assert tiled[-1] is wanted


@shows("text_encoder.max_length")
def test_longer_captions_are_cut_to_max_length(tiny_config: Build) -> None:
    trainer = Trainer(tiny_config("text_encoder.max_length=5"))
    assert trainer.run.tokenizer is not None
    assert trainer.run.tokenizer.encode(["a red circle above a green square"]).shape == (1, 5)


@pytest.mark.parametrize("name", ["coco", "cub", "custom"])
def test_a_data_set_may_be_named_by_how_it_is_laid_out(name: str, tmp_path: Path) -> None:
    write = {"coco": emoji_formats.coco, "cub": emoji_formats.cub}
    write.get(name, emoji_formats.metadata_json)(tmp_path)
    config = load_config({"data": {"dataset_name": name, "dataset_path": str(tmp_path)}})
    assert len(open_image_dataset(config).rows) == emoji_formats.COUNT
