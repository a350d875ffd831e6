"""`--log-level debug` tells about the model, and changes nothing of what it learns."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import trained
from torch import Tensor, nn

from limner.config import Config
from limner.models import shape_log


class Clock:
    seconds = 0.0

    def perf_counter(self) -> float:
        return self.seconds


CLOCK = Clock()


class Slow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        CLOCK.seconds += 0.02
        return x * float("nan")


def lines_of(model: nn.Module, x: Tensor, caplog: pytest.LogCaptureFixture) -> dict[str, str]:
    shape_log.log_shapes(model)
    with caplog.at_level(logging.DEBUG, logger="limner"):
        model(x)
    said = [record.getMessage().partition(": ") for record in caplog.records]
    return {name: rest for name, _, rest in said}


def milliseconds(line: str) -> float:
    (found,) = re.findall(r", ([\d.]+) ms$", line)
    return float(found)


def test_shape_range_mean_and_what_is_not_a_number(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.tensor([[-1.0, 0.0, 4.0]])
    lines = lines_of(nn.Sequential(nn.ReLU(), Slow()), x, caplog)
    assert lines["0"].startswith(
        "[1, 3] float32 from -1 to 4 mean 1 -> [1, 3] float32 from 0 to 4 mean 1.33, "
    )
    assert "mean nan (3 NaN or infinite)" in lines["1"]


def test_a_part_takes_its_own_time_and_a_whole_that_of_its_parts(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Describing is slow here, and is not counted as time of the model."""
    real = shape_log._describe

    def slowly(value: object) -> str:
        CLOCK.seconds += 0.2
        return real(value)

    monkeypatch.setattr(shape_log, "_describe", slowly)
    monkeypatch.setattr(shape_log, "time", CLOCK)
    lines = lines_of(nn.Sequential(Slow(), Slow()), torch.ones(2), caplog)
    assert [milliseconds(lines[name]) for name in ("0", "1", "model")] == [20.0, 20.0, 40.0]


def test_training_learns_the_same_bit_for_bit(
    tiny_config: Callable[..., Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def weights(name: str) -> dict[str, Tensor]:
        config = tiny_config("training.max_steps=3", f"training.output_dir='{tmp_path / name}'")
        return trained(config).model.state_dict()

    quiet = weights("quiet")
    with caplog.at_level(logging.DEBUG, logger="limner"):
        told = weights("told")
    assert any(record.getMessage().startswith("model: ") for record in caplog.records)
    assert quiet.keys() == told.keys()
    assert all(torch.equal(quiet[name], told[name]) for name in quiet)
