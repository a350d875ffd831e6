"""`limner` in a process of its own, forked from one that has imported torch: it starts at once."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import kills
import process_program
from processes import fork_context

from limner.config import Config
from limner.training.monitor.run_log import read_log


class Command:
    """`limner WORDS`, on its way.

    Args:
        ignored: names of signals that it ignores from the beginning, as under nohup.
        fault: one of `process_program.FAULTS`.
    """

    def __init__(
        self, *words: str, ignored: tuple[str, ...] = (), fault: str | None = None
    ) -> None:
        descriptor, name = tempfile.mkstemp()
        os.close(descriptor)
        self.said = Path(name)
        self.process = fork_context().Process(
            target=process_program.alone, args=(list(words), name, ignored, fault)
        )
        self.process.start()

    def send_signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait_for(self, there: Callable[[], object], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not there():
            assert self.process.is_alive(), self.said.read_text("utf-8")
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def ended(self, seconds: float = 120) -> tuple[int | None, str]:
        """Its exit code, and what it said; -9 if it was killed by signal 9."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"it went on: {self.said.read_text('utf-8')}")
        said = self.said.read_text("utf-8")
        self.said.unlink()
        return self.process.exitcode, said


def started(config: Config, ignored: tuple[str, ...] = ()) -> Command:
    """`limner train` of the configuration, once it has taken a step; `unhurried`."""
    words = ("train", "--config", str(kills.written(config)))
    command = Command(*words, ignored=ignored, fault="unhurried")
    log = Path(config.training.output_dir) / "log.jsonl"
    command.wait_for(lambda: any(e["kind"] == "train" for e in read_log(log)))
    return command
