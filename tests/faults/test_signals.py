"""A terminal that is closed: the run is saved, and under nohup it goes on."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import kills
import pytest
from first_step import started

from limner.checkpoint.locate import checkpoints
from limner.training.stopping import StopOnSignal, leave_signals_to_the_main_process

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows sends other signals")


@pytest.fixture(autouse=True)
def handlers_as_before(as_in_a_terminal: None) -> Iterator[None]:
    numbers = signal.SIGHUP, signal.SIGINT, signal.SIGTERM
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("first", ["SIGHUP", "SIGINT", "SIGTERM"])
def test_a_terminal_hangs_up_twice_and_the_run_is_saved_nevertheless(first: str) -> None:
    with StopOnSignal() as stop:
        signal.raise_signal(getattr(signal, first))
        signal.raise_signal(signal.SIGHUP)  # would end this process if it were not ignored by now
        assert stop.name == first
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGHUP) != signal.SIG_IGN


def test_what_nohup_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopOnSignal() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.name is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_processes_that_load_pictures_leave_the_terminal_to_the_main_one() -> None:
    leave_signals_to_the_main_process(0)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_run_under_nohup_goes_on_to_its_end(tmp_path: Path) -> None:
    run = started(kills.small_run(tmp_path / "run", 20), ignored=("SIGHUP",))
    run.send_signal(signal.SIGHUP)
    code, said = run.ended()
    assert code == 0, said
    assert checkpoints(tmp_path / "run")[-1].name == "checkpoint-20"
