"""Signals ask a run to stop, once; the next one ends it."""

import signal

import pytest

from limner.training.stopping import StopOnSignal


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("first", ["SIGINT", "SIGTERM"])
def test_after_the_first_signal_the_system_handles_the_next(first: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopOnSignal() as stop:
        signal.raise_signal(getattr(signal, first))
        assert stop.name == first
        for other in (signal.SIGINT, signal.SIGTERM):
            assert signal.getsignal(other) == signal.SIG_DFL  # which ends the process
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_that_nobody_stopped_has_no_signal() -> None:
    with StopOnSignal() as stop:
        pass
    assert stop.name is None


# What is said at once


def test_it_is_said_at_once_what_happens(capsys: pytest.CaptureFixture[str]) -> None:
    with StopOnSignal():
        signal.raise_signal(signal.SIGINT)
        said = capsys.readouterr().out
    assert said.startswith("SIGINT: stopping after this step, and saving;")
    assert "another Ctrl-C stops at once, without saving" in said


def test_while_nothing_could_be_lost_a_signal_interrupts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with StopOnSignal() as stop:
        with pytest.raises(KeyboardInterrupt), stop.at_once():
            signal.raise_signal(signal.SIGTERM)
        assert stop.name == "SIGTERM"
        assert "SIGTERM: stopping now" in capsys.readouterr().out
        with pytest.raises(KeyboardInterrupt), stop.at_once():
            pytest.fail("a signal that came before interrupts, too")


def test_several_processes_stop_at_the_same_step_and_say_what_they_wait_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with StopOnSignal() as stop, stop.at_once():
        signal.raise_signal(signal.SIGINT)
        assert stop.name == "SIGINT"
    assert "this step, which compiles the model and may take minutes" in capsys.readouterr().out
