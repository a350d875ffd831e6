"""What a run tells while it learns: losses on a fixed grid, the log, previews."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import events, messages, trained

from limner.config import Config
from limner.data.order import evenly_spaced
from limner.training.lr_schedule import learning_rate_share
from limner.training.monitor import throughput
from limner.training.monitor.heldout import FixedGrid, loss_by_level, mean
from limner.training.monitor.run_log import RunLog, read_log
from limner.training.trainer import Trainer

# Measuring


class Blank:
    """A model that answers zero, the mean picture, and remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[torch.Tensor] = []

    def __call__(self, x: torch.Tensor, t: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        self.shown += list(x)
        return torch.zeros_like(x)


def test_the_held_out_loss_is_the_same_whenever_and_however_it_is_measured(
    tiny_config: Callable[..., Config],
) -> None:
    trainer = trained(tiny_config("scheduler.prediction_type=sample"))
    grid, refused = FixedGrid.of(trainer.data.trained, trainer.run.tokenizer, 7)
    assert grid is not None
    assert refused == []
    assert len(grid.images) == len(grid.texts) == 7

    def measure(model: Any, batch_size: int) -> dict[str, float]:
        return loss_by_level(model, trainer.run.objective, grid, batch_size, torch.device("cpu"))

    first = measure(trainer.averaged, 7)
    torch.manual_seed(5)
    assert measure(trainer.averaged, 7) == first
    for batch_size in (1, 3, 64):
        assert measure(trainer.averaged, batch_size) == pytest.approx(first, rel=1e-5)

    # The velocity that follows from a blank picture is wrong by picture / level, in any noise.
    blanks = {batch_size: Blank() for batch_size in (7, 3)}
    brightness = float(grid.images.square().mean())
    for batch_size, blank in blanks.items():
        assert measure(blank, batch_size) == pytest.approx(
            {str(t): brightness / (t / 1000) ** 2 for t in (100, 300, 500, 700, 900)}, rel=1e-5
        )
    assert torch.equal(torch.stack(blanks[7].shown), torch.stack(blanks[3].shown))


def test_the_pictures_looked_at_are_spread_over_all() -> None:
    assert evenly_spaced(10, 4) == [0, 2, 5, 7]
    assert evenly_spaced(3, 64) == [0, 1, 2]
    assert evenly_spaced(0, 64) == []


# Logging


def test_the_log_tells_each_step_as_documented(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config("training.gradient_accumulation_steps=2", "training.logging_steps=2")
    folder = trained(config).folder
    losses = events(folder, "train")
    assert [event["step"] for event in losses] == [2, 3, 4, 6]  # 3: a checkpoint
    for event in losses:
        assert set(event) == {
            "kind",
            "step",
            "images",
            "seconds",
            "loss",
            "grad_norm",
            "learning_rate",
            "images_per_second",
        }
        assert event["images"] == 8 * event["step"]
        share = learning_rate_share(config.lr_scheduler, event["step"] - 1, 6, 2)
        assert event["learning_rate"] == pytest.approx(4e-3 * share)
        assert event["images_per_second"] > 0
    seconds = [event["seconds"] for event in losses]
    assert seconds == sorted(seconds)

    heldout = events(folder, "heldout")
    assert [event["step"] for event in heldout] == [3, 6]
    for event in heldout:
        for prefix in ("", "train_"):
            by_level = event[f"{prefix}loss_by_level"]
            assert list(by_level) == ["100", "300", "500", "700", "900"]
            assert event[f"{prefix}loss"] == pytest.approx(mean(by_level))
    assert heldout[1]["train_loss"] < heldout[0]["train_loss"]

    assert "23 pictures for training, 1 held out" in messages(folder)[0]
    (speed,) = events(folder, "speed")
    assert speed["mfu"] == pytest.approx(
        speed["images_per_second"] * speed["training_gflops_per_picture"] * 1e9 / 1e12, rel=0.05
    )


def test_a_peak_that_a_busy_machine_hides_is_not_taken_for_one(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("training.max_steps=3")
    monkeypatch.setattr(throughput, "matmul_peak", lambda device, dtype: 1e3)
    folder = trained(config).folder
    (speed,) = events(folder, "speed")
    assert speed["images_per_second"] > 0
    assert (speed["mfu"], speed["matmul_peak_gflops"]) == (None, None)
    assert any("too busy to measure its peak" in message for message in messages(folder))


def test_the_work_of_training_is_three_products_of_each_matrix() -> None:
    layer = torch.nn.Linear(8, 16)
    assert throughput.training_flops(layer, (torch.zeros(1, 8),)) == 3 * 2 * 8 * 16


def test_the_flops_of_fused_attention_are_counted_on_the_processor() -> None:
    class Attention(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(q, k, k)

    q, k = torch.zeros(1, 2, 16, 8), torch.zeros(1, 2, 32, 8)
    assert throughput.training_flops(Attention(), (q, k)) == 3 * 2 * (2 * 16 * 32 * 8 * 2)


def test_a_log_line_is_the_mean_over_its_steps(tiny_config: Callable[..., Config]) -> None:
    each = tiny_config()
    thirds = tiny_config(
        "training.logging_steps=3", f"training.output_dir='{each.training.output_dir}-2'"
    )
    single, means = (events(trained(config).folder, "train") for config in (each, thirds))
    for name in ("loss", "grad_norm"):
        values = [event[name] for event in single]
        expected = [sum(values[:3]) / 3, sum(values[3:]) / 3]
        assert [event[name] for event in means] == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("float16_here")
def test_every_line_is_json_even_where_fp16_overflows(tiny_config: Callable[..., Config]) -> None:
    # Nearly clean pictures have the largest losses, where the picture is predicted.
    settings = "scheduler.prediction_type=sample", "scheduler.logit_mean=2"
    config = tiny_config("training.mixed_precision=fp16", *settings)
    folder = trained(config).folder

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    text = (folder / "log.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    norms = [line["grad_norm"] for line in lines if line["kind"] == "train"]
    assert None in norms  # the first loss scale is too large for these gradients
    assert norms[-1] is not None


def test_a_resumed_log_forgets_what_came_later_and_what_a_crash_cut_short(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    accelerator = Trainer(tiny_config()).run.accelerator
    log = RunLog(tmp_path, accelerator, resumed_at=0)
    for step in range(1, 6):
        log.write("train", step, loss=1.0 / step)
    with log.path.open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "st')
    RunLog(tmp_path, accelerator, resumed_at=3).write("train", 4, loss=7.0)
    assert [(e["step"], e["loss"]) for e in read_log(log.path)] == [
        (1, 1.0),
        (2, 0.5),
        (3, pytest.approx(1 / 3)),
        (4, 7.0),
    ]
    RunLog(tmp_path, accelerator, resumed_at=0)
    assert read_log(log.path) == []


def test_previews_and_tensorboard_appear_as_it_learns(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(
        "training.preview_steps=4",
        "training.preview_prompts=[a red circle, 红苹果, '']",
        "training.trackers=[tensorboard]",
    )
    folder = trained(config).folder
    previews = sorted((folder / "previews").iterdir())
    assert [path.name for path in previews] == ["step-000004.png", "step-000006.png"]
    first, last = (np.asarray(Image.open(path).convert("RGB")).astype(int) for path in previews)
    assert first.shape == last.shape
    assert (first != last).any()
    with Image.open(previews[-1]) as sheet:
        assert json.loads(sheet.info["prompts"]) == ["a red circle", "红苹果", ""]
    assert list(folder.glob("tensorboard/**/events.out.tfevents*"))
    assert (folder / "config.yaml").read_text(encoding="utf-8") == config.to_yaml()


def test_at_debug_level_shapes_and_ranges_are_told(
    tiny_config: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="limner"):
        trained(tiny_config("training.max_steps=1"))
    lines = [record.getMessage() for record in caplog.records]
    (whole,) = [line for line in lines if line.startswith("model:")]
    assert "[4, 3, 16, 16] float32 from " in whole
    assert any(line.startswith("denoiser.blocks.1:") for line in lines)
