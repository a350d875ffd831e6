"""What a run tells: printed once, and kept in its log from its first line on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs import messages, trained

from limner import console, device
from limner.config import Config
from limner.training.monitor.run_log import RunEvents
from limner.training.trainer import Trainer

Build = Callable[..., Config]


@pytest.fixture
def level() -> Iterator[Callable[[int], None]]:
    """Sets that of `limner`."""
    logger = logging.getLogger("limner")
    before = logger.level
    yield logger.setLevel
    logger.setLevel(before)


@pytest.fixture
def no_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some processors multiply it."""
    monkeypatch.setattr(device, "multiplies_in_hardware", lambda *_: False)
    monkeypatch.setattr(device, "fast_bfloat16", lambda *_: False)


@pytest.mark.usefixtures("no_float16")
def test_what_is_told_while_a_run_is_opened_follows_its_first_line(
    tiny_config: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fp16 = "training.mixed_precision=fp16", "training.max_steps=1"
    run = Trainer(tiny_config(*fp16))
    Trainer(tiny_config(*fp16, f"training.output_dir='{tmp_path / 'other'}'"))  # which tells, too
    capsys.readouterr()
    run.train()
    first, second, *_ = messages(run.folder)
    assert "pictures for training" in first
    assert second.startswith(
        "training.mixed_precision: this processor has no hardware support for float16"
    )
    assert messages(run.folder).count(second) == 1
    out = capsys.readouterr().out
    assert out.count(first + "\n") == 1
    assert second not in out  # which was printed as soon as it was known


def test_a_run_keeps_what_is_of_it(tiny_config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(tiny_config("training.max_steps=1"))
    step = trainer.step

    def telling() -> object:
        logging.getLogger("limner.training.recovery").info("of the %s", "run")
        logging.getLogger("limner.checkpoint.saver").warning("of a checkpoint")
        logging.getLogger("limner.data.verify").info("of the data")
        logging.getLogger("limner.precompute").info("of a cache")
        return step()

    trainer.step = telling  # type: ignore[assignment, method-assign]
    trainer.train()
    logging.getLogger("limner.training").info("later")
    kept = messages(trainer.folder)
    assert [m for m in kept if m.startswith("of ")] == ["of the run", "of a checkpoint"]
    assert "later" not in kept
    told = capsys.readouterr()
    for sentence in ("of the run", "of the data", "of a cache", "later"):
        assert told.out.splitlines().count(sentence) == 1
    assert "of a checkpoint" in told.err


@pytest.mark.usefixtures("no_float16")
def test_a_run_keeps_what_nobody_wants_printed(
    tiny_config: Build, capsys: pytest.CaptureFixture[str], level: Callable[[int], None]
) -> None:
    level(logging.WARNING)
    folder = trained(tiny_config("training.mixed_precision=fp16", "training.max_steps=1")).folder
    assert "pictures for training" in messages(folder)[0]
    assert "float16" in messages(folder)[1]
    assert "pictures for training" not in capsys.readouterr().out
    assert not logging.getLogger("limner").isEnabledFor(logging.INFO)


def test_other_processes_of_a_run_print_and_keep_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console._voice, "muted", True)
    logging.getLogger("limner.training").info("one voice")
    assert capsys.readouterr().out == ""
    events = RunEvents()
    with events.listening():
        monkeypatch.setattr("os.getpid", lambda: events.process + 1)  # a forked one that loads
        logging.getLogger("limner.training").info("one voice")
    assert events.waiting == []


def test_a_run_keeps_nothing_of_another_one_at_the_same_time() -> None:
    """Each in its thread; what threads tell that are no run's is kept by both."""
    at_once = threading.Barrier(3)
    both = RunEvents(), RunEvents()

    def run(events: RunEvents, name: str) -> None:
        with events.listening():
            at_once.wait(30)
            logging.getLogger("limner.training").info("told by %s", name)
            at_once.wait(30)  # the third tells
            at_once.wait(30)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(both, "ab", strict=True)]
    for thread in threads:
        thread.start()
    at_once.wait(30)
    at_once.wait(30)
    logging.getLogger("limner.training").info("told beside them")
    at_once.wait(30)
    for thread in threads:
        thread.join()
    assert [events.waiting for events in both] == [
        ["told by a", "told beside them"],
        ["told by b", "told beside them"],
    ]
