"""Stop on SIGINT, SIGTERM, or SIGHUP: finish the step, save, and exit; the same command resumes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from limner.errors import LimnerError

ECHO = 10.0
"""Seconds."""


class Stopped(LimnerError):
    """Raised when the run was stopped by a signal, after saving."""

    exit_code = 75
    """BSD's EX_TEMPFAIL: try again later, and the run goes on."""


class StopOnSignal:
    """Context manager: a stop signal sets `name`, which the training loop checks.

    These are SIGINT (Ctrl-C), SIGTERM, and SIGHUP (the terminal was closed, the SSH connection was
    lost; on Windows SIGBREAK). Where SIGHUP is ignored, as under nohup, it stays ignored.

    A second one ends the process at once: the system's own handling is back in place after the
    first, so that it works even where the program is stuck. Checkpoints are written whole or not
    at all, so that nothing is harmed. A second SIGHUP is no impatience: the shell passes on its
    own, and the system sends another one when the shell has ended.

    Of several processes each hears a Ctrl-C, or a Slurm step's end, twice: by itself and from
    torchrun, which passes on what it got. There what comes within `ECHO` of the first is that.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        """Of the signal that came, such as "SIGTERM"."""
        self.before: dict[signal.Signals, Any] = {}
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self.launched = several or "TORCHELASTIC_RUN_ID" in os.environ
        self.since = 0.0

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():  # only there it is allowed
            for number in _asking():
                self.before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.name is None:
            self.name, self.since = signal.Signals(number).name, now
            if self.launched:
                return
        elif now - self.since < ECHO:
            return
        for every in self.before:
            hangs_up = every == getattr(signal, "SIGHUP", None)
            signal.signal(every, signal.SIG_IGN if hangs_up else signal.SIG_DFL)
        if self.launched:  # and this is a second one
            signal.raise_signal(number)


def _asking() -> list[signal.Signals]:
    """The signals that ask a run to stop, on this system and as it was started."""
    names = "SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"
    found = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [n for n in found if n.name != "SIGHUP" or signal.getsignal(n) != signal.SIG_IGN]


def leave_signals_to_the_main_process(worker: int) -> None:
    """For the loader's workers: Ctrl-C and a terminal that is closed reach all processes of the
    terminal, and one decides. (SIGTERM is how the loader itself ends them.)"""
    for name in ("SIGINT", "SIGHUP", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def quiet_about_workers() -> Iterator[None]:
    """torch would raise in the midst of whatever runs when one of the loader's workers dies; asked
    for its next batch the loader says so too, and there it can be helped."""
    number = getattr(signal, "SIGCHLD", None)  # not on Windows
    if number is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(number)
    try:
        yield
    finally:
        signal.signal(number, before or signal.SIG_DFL)
