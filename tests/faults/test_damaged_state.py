"""A training state that cannot be used though its checksums are right: the one before is taken, and
that is said. (A stranger can make checksums fit; a memory that fails does, too.)"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compared_runs import differing, elsewhere, run
from runs import messages
from small_autoencoder import SETTINGS, at_step, same

from limner.apps.autoencoder.train import train_autoencoder
from limner.checkpoint import manifest
from limner.checkpoint.folder import load_tensors
from limner.config import Config
from limner.errors import LimnerError
from limner.training.trainer import Trainer

Build = Callable[..., Config]


def no_such_optimizer(folder: Path) -> None:
    torch.save({"muon": "none", "adamw": 3}, folder / "optimizer.pt")


def other_weights(folder: Path) -> None:
    weights = load_tensors(folder / "model.pt")
    torch.save({name: tensor[..., :1] for name, tensor in weights.items()}, folder / "model.pt")


def no_tensors(folder: Path) -> None:
    (folder / "model.pt").write_bytes(b"PK\x05\x06" + bytes(18))


def impossible_step(folder: Path) -> None:
    state = json.loads((folder / "training_state.json").read_text("utf-8"))
    (folder / "training_state.json").write_text(json.dumps(state | {"step": -3}), "utf-8")


def unknown_keys(folder: Path) -> None:
    (folder / "training_state.json").write_text('{"stop": 1}', "utf-8")


def binary_state(folder: Path) -> None:
    (folder / "training_state.json").write_bytes(b"\xff\x00\xfe")


def no_config(folder: Path) -> None:
    (folder / "config.yaml").write_text("training: [", "utf-8")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}", "utf-8")


DAMAGES = (
    *(no_such_optimizer, other_weights, no_tensors, impossible_step, unknown_keys),
    *(binary_state, no_config, no_tokenizer),
)


def damage(folder: Path, how: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> None:
    how(folder)
    (folder / "manifest.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "_is_complete", lambda path: True)
        manifest.seal(folder)


@pytest.mark.parametrize("how", DAMAGES)
def test_the_one_before_is_taken_and_the_run_ends_as_if_nothing_had_been(
    how: Callable[[Path], None], tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("training.max_steps=9")
    whole = run(elsewhere(config, "whole"))
    folder = run(config)
    damage(folder / "checkpoint-9", how, monkeypatch)
    run(config)  # the same command
    assert differing(whole / "checkpoint-9", folder / "checkpoint-9") == []
    said = [m for m in messages(folder) if m.startswith("skipped checkpoint-9: ")]
    assert len(said) == 1
    assert "resumed at step 6, 24 pictures seen" in messages(folder)


def test_one_that_is_named_is_not_replaced_by_another(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(tiny_config())
    damage(folder / "checkpoint-6", other_weights, monkeypatch)
    with pytest.raises(LimnerError, match="does not fit the model"):
        Trainer(tiny_config(), resume=folder / "checkpoint-6")


def test_where_none_can_be_used_the_run_does_not_begin_anew(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(tiny_config())
    damage(folder / "checkpoint-6", other_weights, monkeypatch)
    damage(folder / "checkpoint-3", impossible_step, monkeypatch)
    with pytest.raises(LimnerError, match="does not fit the model"):
        Trainer(tiny_config())
    damage(folder / "checkpoint-6", impossible_step, monkeypatch)
    with pytest.raises(LimnerError, match=r"(?s)no checkpoint in .*checkpoint-6.*checkpoint-3"):
        Trainer(tiny_config())


@pytest.mark.parametrize("how", [no_such_optimizer, other_weights, impossible_step])
def test_an_autoencoder_that_is_being_fitted(
    how: Callable[[Path], None],
    tiny_config: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny_config(*SETTINGS)
    train_autoencoder(config, tmp_path / "whole")
    at_step(10, lambda: 1 / 0, monkeypatch)
    with pytest.raises(ZeroDivisionError):
        train_autoencoder(config, tmp_path / "vae")
    damage(tmp_path / "vae-unfinished" / "checkpoint-8", how, monkeypatch)
    train_autoencoder(config, tmp_path / "vae")
    said = capsys.readouterr().out
    assert "skipped checkpoint-8: " in said
    assert "resumed at step 4," in said
    assert same(tmp_path / "whole", tmp_path / "vae")
