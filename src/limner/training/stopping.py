"""Stop on SIGINT, SIGTERM, or SIGHUP: finish the step, save, and exit; the same command resumes."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from limner.errors import LimnerError

log = logging.getLogger("limner.stopping")
"""Outside `limner.training`: what a signal handler says must not be written to the run's log in the
middle of another line."""
ECHO = 10.0
"""Seconds within which a second signal counts as a copy of the first (see `StopOnSignal`)."""


class Stopped(LimnerError):
    """Raised when the run was stopped by a signal, after saving."""

    exit_code = 75
    """BSD's EX_TEMPFAIL: try again later, which resumes the run."""


class StopOnSignal:
    """Context manager: a stop signal sets `name`, which the training loop checks.

    These are SIGINT (Ctrl-C), SIGTERM, and SIGHUP (the terminal was closed, the SSH connection was
    lost; on Windows SIGBREAK). Where SIGHUP is ignored, as under nohup, it stays ignored.

    At the first one it is said what happens now, while the program may still be at its step for
    minutes, as when that step compiles the model.

    A second signal ends the process at once: the default handling is restored after the first, so
    this works even if the program is stuck. Checkpoints are written atomically, so nothing is
    harmed. A second SIGHUP is ignored: the shell forwards its own, and the system sends another
    when the shell has ended.

    With several processes, each gets a Ctrl-C, or the signal at the end of a Slurm step, twice:
    directly, and forwarded by torchrun. A second signal within `ECHO` of the first is taken for
    that copy.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        """The signal received, such as "SIGTERM"; None: none yet."""
        self.before: dict[signal.Signals, Any] = {}
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self.launched = several or "TORCHELASTIC_RUN_ID" in os.environ
        self.since = 0.0
        self.compiling = False
        """Whether the first step has not been made, which compiles the model."""
        self.first: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def at_once(self, first: Callable[[], None] = lambda: None) -> Iterator[None]:
        """While nothing has been made that could be lost: a signal interrupts what is inside, such
        as a compiler that would go on for minutes, in the place of waiting for it. With several
        processes, which have to stop at the same step, it waits.

        Args:
            first: is called by the signal handler before it interrupts.

        Raises:
            KeyboardInterrupt: a signal was received, inside or before.
        """
        self.compiling, self.first = True, first
        try:
            if self.name is not None and not self.launched:
                raise KeyboardInterrupt
            yield
        finally:
            self.compiling = False

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():  # allowed only there
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
            with contextlib.suppress(RuntimeError):  # it came in the middle of printing
                log.info(self._in_words())
            if self.launched:
                return
        elif now - self.since < ECHO:
            return
        for every in self.before:
            hangs_up = every == getattr(signal, "SIGHUP", None)
            signal.signal(every, signal.SIG_IGN if hangs_up else signal.SIG_DFL)
        if self.launched:  # and this is a second signal
            signal.raise_signal(number)
        elif self.compiling:
            self.first()
            raise KeyboardInterrupt

    def _in_words(self) -> str:
        if self.compiling and not self.launched:
            return f"{self.name}: stopping now, as no step has been made since the start"
        waits = ", which compiles the model and may take minutes" if self.compiling else ""
        again = "another Ctrl-C" if self.name == "SIGINT" else "another signal"
        return (
            f"{self.name}: stopping after this step{waits}, and saving; {again} stops at "
            "once, without saving"
        )


def _asking() -> list[signal.Signals]:
    """The signals that stop a run, given the system and how the run was started."""
    names = "SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"
    found = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [n for n in found if n.name != "SIGHUP" or signal.getsignal(n) != signal.SIG_IGN]


def leave_signals_to_the_main_process(worker: int) -> None:
    """In the loader's workers, ignore Ctrl-C and a closing terminal, which reach all processes of
    the terminal: only the main process handles them. (The loader itself ends workers with
    SIGTERM.)"""
    for name in ("SIGINT", "SIGHUP", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def quiet_about_workers() -> Iterator[None]:
    """Keep torch from raising in the middle of any code when a worker of the loader dies: the
    loader also raises when asked for its next batch, where it can be handled."""
    number = getattr(signal, "SIGCHLD", None)  # not on Windows
    if number is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(number)
    try:
        yield
    finally:
        signal.signal(number, before or signal.SIG_DFL)
