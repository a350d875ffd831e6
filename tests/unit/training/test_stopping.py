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
