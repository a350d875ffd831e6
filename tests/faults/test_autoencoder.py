"""An autoencoder that is being fitted is a run like any other: what ends it loses nothing."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from first_step import Command
from small_autoencoder import SETTINGS, SMALL, WEIGHTS, at_step, same
from small_disk import no_file_above

from limner.apps.autoencoder import fit as autoencoder_fit
from limner.apps.autoencoder.fit import Fit
from limner.apps.autoencoder.train import fitting_folder, train_autoencoder
from limner.checkpoint.locate import checkpoints
from limner.checkpoint.manifest import damage
from limner.config import Config, load_config
from limner.errors import LimnerError
from limner.training.stopping import Stopped

Build = Callable[..., Config]


@pytest.fixture
def config(tiny_config: Build) -> Config:
    return tiny_config(*SETTINGS)


@pytest.fixture
def whole(config: Config, tmp_path: Path) -> Path:
    """One that was left alone."""
    train_autoencoder(config, tmp_path / "whole")
    return tmp_path / "whole"


def test_its_checkpoints_go_when_it_is_written(whole: Path) -> None:
    assert [path.name for path in whole.parent.iterdir()] == ["whole"]


@pytest.mark.parametrize("step", [0, 5, 8])
def test_a_signal_saves_it_and_the_same_command_ends_with_the_same_bytes(
    step: int, config: Config, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(step, lambda: signal.raise_signal(signal.SIGTERM), monkeypatch)
    output = tmp_path / "vae"
    with pytest.raises(
        Stopped, match=rf"stopped by SIGTERM after step {step + 1}; saved in .*vae-unfinished"
    ):
        train_autoencoder(config, output)
    assert not output.exists()
    assert checkpoints(fitting_folder(output))[-1].name == f"checkpoint-{step + 1}"
    train_autoencoder(config, output)
    assert same(whole, output)
    assert not fitting_folder(output).exists()


def test_a_crash_costs_what_followed_the_last_checkpoint(
    config: Config,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "vae"
    at_step(10, lambda: 1 / 0, monkeypatch)
    with pytest.raises(ZeroDivisionError):
        train_autoencoder(config, output)
    assert [c.name for c in checkpoints(fitting_folder(output))] == ["checkpoint-4", "checkpoint-8"]
    (fitting_folder(output) / "checkpoint-8" / "optimizer.pt").write_bytes(b"damaged")
    train_autoencoder(config, output)
    said = capsys.readouterr().out
    assert "skipped checkpoint-8: optimizer.pt has 7 bytes" in said
    assert "resumed at step 4, 32 crops seen" in said
    assert same(whole, output)


def test_none_that_is_good_is_no_reason_to_begin_anew(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(5, lambda: 1 / 0, monkeypatch)
    with pytest.raises(ZeroDivisionError):
        train_autoencoder(config, tmp_path / "vae")
    (tmp_path / "vae-unfinished" / "checkpoint-4" / "model.pt").unlink()
    with pytest.raises(LimnerError, match=r"(?s)no usable checkpoint in .*vae-unfinished; delete"):
        train_autoencoder(config, tmp_path / "vae")


def test_other_settings_do_not_go_on_and_another_length_does(
    config: Config, tiny_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "vae"
    at_step(5, lambda: signal.raise_signal(signal.SIGINT), monkeypatch)
    with pytest.raises(Stopped):
        train_autoencoder(config, output)
    other = tiny_config(*SETTINGS, "autoencoder.latent_channels=8", "training.seed=7")
    with pytest.raises(
        LimnerError,
        match=r"(?s)latent_channels: 4 in the checkpoint, 8 in this run.*seed: .*delete",
    ):
        train_autoencoder(other, output)
    assert (
        train_autoencoder(tiny_config(*SETTINGS, "autoencoder.max_steps=8"), output)["steps"] == 8
    )


def test_a_full_disk_at_its_end_costs_nothing_and_the_earlier_one_stays(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "vae"
    train_autoencoder(config, output)
    before = (output / WEIGHTS).read_bytes()
    fitted = Fit.run

    def then_full(fit: Fit) -> None:
        fitted(fit)
        limit.__enter__()

    limit = no_file_above(20_000)
    with monkeypatch.context() as patch:
        patch.setattr(Fit, "run", then_full)
        with pytest.raises(OSError, match="File too large"):
            train_autoencoder(config, output)
    limit.__exit__(None, None, None)
    assert (output / WEIGHTS).read_bytes() == before
    assert sorted(p.name for p in output.parent.iterdir()) == ["vae", "vae-unfinished"]
    monkeypatch.setattr(Fit, "_update", lambda fit: 1 / 0)  # nothing is left to learn
    train_autoencoder(config, output)
    assert (output / WEIGHTS).read_bytes() == before
    assert [p.name for p in output.parent.iterdir()] == ["vae"]


def test_a_full_disk_at_a_checkpoint_costs_that_one_only(
    config: Config, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    limit = no_file_above(20_000)
    update = Fit._update

    def limited(fit: Fit) -> torch.Tensor:
        if fit.state.step == 3:
            limit.__enter__()
        if fit.state.step == 6:
            limit.__exit__(None, None, None)
        return update(fit)

    monkeypatch.setattr(Fit, "_update", limited)
    train_autoencoder(config, tmp_path / "vae")
    assert "checkpoint-4 could not be written (File too large" in capsys.readouterr().out
    assert same(whole, tmp_path / "vae")


def test_one_that_has_not_learned_does_not_take_the_place_of_one_that_has(
    config: Config, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (whole / WEIGHTS).read_bytes()
    run = Fit.run

    def spoilt(fit: Fit) -> None:
        run(fit)
        for weight in fit.averaged.parameters():
            weight.fill_(torch.nan)

    monkeypatch.setattr(Fit, "run", spoilt)
    with pytest.raises(LimnerError, match=r"mean nan .*lower autoencoder\.learning_rate"):
        train_autoencoder(config, whole)
    assert (whole / WEIGHTS).read_bytes() == before


def test_checkpoints_come_by_the_minute_too(
    tiny_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoencoder_fit, "SAVE_EVERY", 0.0)
    at_step(3, lambda: 1 / 0, monkeypatch)
    with pytest.raises(ZeroDivisionError):
        train_autoencoder(tiny_config(*SETTINGS, "training.save_steps=1000"), tmp_path / "vae")
    found = checkpoints(tmp_path / "vae-unfinished")
    assert [c.name for c in found] == ["checkpoint-2", "checkpoint-3"]
    assert all(damage(c) is None for c in found)


@pytest.mark.skipif(os.name == "nt", reason="Windows sends other signals")
@pytest.mark.usefixtures("as_in_a_terminal")
def test_the_command_ends_with_75_and_says_where_it_is(tmp_path: Path) -> None:
    path, output = tmp_path / "c.yaml", tmp_path / "vae"
    settings = ["data.dataset_name=shapes", "training.device=cpu", *SMALL, "training.save_steps=5"]
    path.write_text(load_config(None, settings).to_yaml(), "utf-8")
    run = Command("train-autoencoder", str(path), "--output", str(output))
    run.wait_for(lambda: checkpoints(fitting_folder(output)))
    run.send_signal(signal.SIGHUP)
    code, said = run.ended(60)
    assert code == 75, said
    assert "stopped by SIGHUP after step" in said
    assert "vae-unfinished. Run the same command to resume" in said
