"""A precision that the hardware does not multiply is said, and replaced by the best that it has."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from limner import Trainer
from limner import device as devices
from limner.apps.doctor import precision as doctor_precision
from limner.config import Config
from limner.inference.generator import ImageGenerator
from limner.training.monitor import throughput
from limner.training.monitor.run_log import read_log

CPU = torch.device("cpu")
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """processor("avx512_bf16"): one with these features."""

    def has(*features: str) -> None:
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda: dict.fromkeys(("avx2", *features), True)
        )

    return has


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ((), {"no": F32, "auto": F32, "bf16": F32, "fp16": F32}),
        (("avx512_bf16",), {"no": F32, "auto": BF16, "bf16": BF16, "fp16": BF16}),
        (("avx512_bf16", "avx512_fp16"), {"no": F32, "auto": BF16, "bf16": BF16, "fp16": F16}),
        (("fp16_arith", "bf16"), {"no": F32, "auto": F32, "bf16": BF16, "fp16": F32}),  # Arm
    ],
)
def test_the_best_precision_of_the_hardware_stands_in(
    features: tuple[str, ...],
    expected: dict[str, torch.dtype],
    processor: Callable[..., None],
) -> None:
    processor(*features)
    for wanted, dtype in expected.items():
        assert devices.choose_precision(wanted, CPU) == dtype
        note = devices.precision_note(wanted, CPU, "training.mixed_precision")
        asked = {"fp16": F16, "bf16": BF16}.get(wanted, dtype)
        if dtype == asked:
            assert note is None
        else:
            assert note is not None
            assert f"has no hardware support for {devices.name_of(asked)} " in note
            assert note.endswith(f"using {devices.name_of(dtype)}")


def test_a_gpu_of_an_older_generation_has_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    cuda = torch.device("cuda")
    assert devices.choose_precision("fp16", cuda) == F16
    assert devices.choose_precision("bf16", cuda) == F32
    note = devices.precision_note("bf16", cuda, "training.mixed_precision")
    assert note is not None
    assert "Tesla T4 has no hardware support for bfloat16" in note


def test_fp16_on_a_processor_trains_in_what_it_has_and_says_so_once(
    tiny_config: Callable[..., Config], processor: Callable[..., None]
) -> None:
    processor()
    trainer = Trainer(tiny_config("training.mixed_precision=fp16"))
    assert trainer.run.dtype == F32
    assert trainer.run.train_step.scaler is None  # which only float16 needs
    trainer.train()
    said = [e["message"] for e in read_log(trainer.folder / "log.jsonl") if e["kind"] == "event"]
    assert sum("has no hardware support for float16" in message for message in said) == 1
    (warned,) = (f for f in doctor_precision(trainer.config) if f.name == "precision")
    assert warned.verdict == "warn"
    assert "using float32" in warned.seen


def test_drawing_in_float16_is_no_slower_than_in_float32(
    trained: Any, processor: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    processor()
    generator = ImageGenerator(trained / "outputs", device="cpu", dtype="float16")
    assert generator.dtype == F32
    assert "dtype float16: this processor has no hardware support for float16" in caplog.text
    expected = ImageGenerator(trained / "outputs", device="cpu").generate("a red circle")
    assert generator.generate("a red circle").tobytes() == expected.tobytes()


@pytest.mark.parametrize("rate", [1e7, 1e9, 1e12])
def test_a_measurement_for_a_log_line_takes_no_longer_than_a_second(
    rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device of so many FLOP/s, by a clock that only its products move."""
    now, sides = 0.0, []

    class Matrix:
        def __init__(self, side: int) -> None:
            self.side = side

        def to(self, dtype: torch.dtype) -> Matrix:
            return self

        def __matmul__(self, other: Matrix) -> None:
            nonlocal now
            sides.append(self.side)
            now += 2 * self.side**3 / rate

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(torch, "randn", lambda side, *_, **__: Matrix(side))
    assert throughput.matmul_peak(CPU, F16) == pytest.approx(rate)
    assert now <= max(1.0, 6 * 2 * 128**3 / rate)  # even the smallest is measured
    assert max(sides) == {1e7: 128, 1e9: 256, 1e12: 2048}[rate]
