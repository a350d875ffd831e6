"""What `limner train` says at its end: how it learned, and what to try."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from limner.cli import main
from limner.config import Config
from limner.evaluation import summary
from limner.training.monitor.run_log import read_log


def said_by_training(config: Config, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    path = folder / "end.yaml"
    path.write_text(config.to_yaml(), "utf-8")
    assert main(["train", "--config", str(path)]) == 0
    return capsys.readouterr().out


def test_the_command_to_try_draws_different_prompts_trained_and_held_out(
    tiny_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = said_by_training(
        tiny_config("training.max_steps=2", "data.num_samples=80"), tmp_path, capsys
    )
    (line,) = [line for line in said.splitlines() if line.startswith("  limner generate ")]
    program, *words = shlex.split(line)
    assert program == "limner"
    prompts = words[2 : words.index("--sheet")]
    assert len(set(prompts)) == 4
    known = [p["prompt"] for p in json.loads((tmp_path / "run" / "samples.json").read_text("utf-8"))
             if p["split"] == "held out"]  # fmt: skip
    assert [any(caption.startswith(p) for caption in known) for p in prompts[2:]] == [True, True]
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    assert len(list(tmp_path.glob("drawn-[0-9].png"))) == 4
    with Image.open("drawn-sheet.png") as sheet:
        assert sheet.width > 96


def test_it_says_whether_it_has_memorised(
    tiny_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny_config(
        "training.max_steps=2", "data.num_samples=80", "training.heldout_pictures=3"
    )
    assert "memorised:" not in said_by_training(config, tmp_path, capsys)
    measured = [e for e in read_log(tmp_path / "run" / "log.jsonl") if e["kind"] == "heldout"][-1]
    losses = json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))["losses"]
    assert losses == {
        "step": 2,
        "held_out": measured["loss"],
        "trained": measured["train_loss"],
        "held_out_count": 3,
        "trained_count": 3,
    }
    monkeypatch.setattr(summary, "GAP", 0)
    monkeypatch.setattr(summary, "SPREAD", -10)
    for command in (
        ["train", "--config", str(tmp_path / "end.yaml")],
        ["report", config.training.output_dir],
    ):
        assert main(command) == 0
        assert f"memorised: the loss is {losses['trained']:.3f} on" in capsys.readouterr().out
