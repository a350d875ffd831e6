"""Logging of a run: log.jsonl, trackers, and refused.jsonl.

Messages are logged with `logging.getLogger(__name__).info(...)`, as everywhere; those of
`limner.training` and `limner.checkpoint` are also kept in log.jsonl.

A full disk does not end a run because of its log: lines wait in memory until they can be written.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from accelerate import Accelerator

from limner.config import Config
from limner.console import information_on
from limner.data.dataset import Refused
from limner.files.atomic import write_text_whole
from limner.files.small_files import json_lines
from limner.redaction import redact_urls, redacted
from limner.training.monitor.trackers import Trackers

log = logging.getLogger("limner.run_log")
"""Outside `limner.training`, because a failure to write the log cannot go into the log."""
MOST_WAITING = 10_000
"""The most lines that wait for a full disk; beyond that the oldest are dropped."""


class RunEvents(logging.Handler):
    """Passes messages to the log of a run while it is opened and trained.

    If two runs are trained at once, messages from the thread of one go to that run only.

    Attributes:
        write: takes a message; None: messages wait until `write_waiting`.
    """

    OF = ("limner.training", "limner.checkpoint")
    threads: ClassVar[set[int]] = set()
    """Threads in which a run is being opened or trained."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.write: Callable[[str], None] | None = None
        self.waiting: list[str] = []
        self.process = os.getpid()
        self.thread = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        loggers = [logging.getLogger(name) for name in self.OF]
        self.thread = threading.get_ident()
        with information_on():
            self.threads.add(self.thread)
            for logger in loggers:
                logger.addHandler(self)
            try:
                yield
            finally:
                self.write = None
                self.threads.discard(self.thread)
                for logger in loggers:
                    logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if os.getpid() != self.process:
            return  # a loader worker, forked from the process of the run
        if (thread := threading.get_ident()) != self.thread and thread in self.threads:
            return
        if self.write is None:
            self.waiting.append(record.getMessage())
        else:
            self.write(record.getMessage())

    def write_waiting(self) -> None:
        waiting, self.waiting = self.waiting, []
        for message in waiting:
            assert self.write is not None
            self.write(message)


class RunLog:
    """Appends one JSON object per event, and sends metrics to the trackers.

    A run resumed at step N drops what was logged after N, so that its log is that of an
    uninterrupted run.

    Args:
        places: paths that messages may contain. The log may be shared, so it has only the last
            component of each. (refused.jsonl, which is used to repair rows, has whole paths.)
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        resumed_at: int,
        places: Sequence[str] = (),
    ) -> None:
        self.accelerator, self.places = accelerator, places
        self.path = folder / "log.jsonl"
        self.refused_path = folder / "refused.jsonl"
        self.refused_rows: set[Refused] = set()
        self.waiting: dict[Path, list[Any]] = {}
        self.trackers: Trackers | None = None
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            if resumed_at:
                self.forget_after(resumed_at)
            else:
                _rewrite(self.path, ())
            _rewrite(self.refused_path, ())

    def forget_after(self, step: int) -> None:
        """Remove log entries after this step."""
        if self.accelerator.is_main_process:
            self.waiting.pop(self.path, None)
            _rewrite(self.path, [e for e in read_log(self.path) if e["step"] <= step])

    def write(self, kind: str, step: int, **values: Any) -> None:
        if not self.accelerator.is_main_process:
            return
        self._append(self.path, [{"kind": kind, "step": step, **redacted(values, self.places)}])
        numbers = {f"{kind}/{k}": v for k, v in _flat(values) if isinstance(v, int | float)}
        if numbers and self.trackers and kind not in ("event", "plan"):
            self.trackers.log(numbers, step)

    def start_trackers(self, config: Config, resumed_at: int) -> None:
        self.trackers = Trackers(config, resumed_at)
        self.trackers.start()

    def preview(self, path: Path, step: int) -> None:
        if self.trackers:
            self.trackers.image(path, step)

    def finish(self) -> None:
        if self.trackers:
            self.trackers.finish()

    def refuse(self, rows: Iterable[Refused]) -> list[Refused]:
        """Record unusable rows, each once; returns the new ones."""
        new = [row for row in rows if row not in self.refused_rows]
        self.refused_rows.update(new)
        if new and self.accelerator.is_main_process:
            self._append(self.refused_path, [_listed(row) for row in new])
        return new

    def _append(self, path: Path, objects: list[Any]) -> None:
        waited = path in self.waiting
        lines = [*self.waiting.pop(path, []), *objects]
        end: int | None = None
        try:
            end = path.stat().st_size if path.exists() else 0  # also raises if the drive is gone
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(_lines(lines))
        except OSError as error:
            if end is not None:
                with contextlib.suppress(OSError):  # else what was written would be there twice
                    os.truncate(path, end)
            if not waited:
                log.warning(
                    f"cannot write {path} ({error.strerror}); its lines are kept in memory until "
                    "it can"
                )
            self.waiting[path] = lines[-MOST_WAITING:]


def list_refused(folder: Path, rows: Iterable[Refused]) -> None:
    """Write refused.jsonl if any row was refused."""
    if rows := list(rows):
        folder.mkdir(parents=True, exist_ok=True)
        _rewrite(folder / "refused.jsonl", [_listed(row) for row in rows])


def _listed(row: Refused) -> dict[str, str]:
    return {key: redact_urls(value) for key, value in asdict(row).items()}


def read_log(path: Path) -> list[dict[str, Any]]:
    """The events of a log.jsonl; a last line that a crash cut short is left out."""
    events = json_lines(path) if path.is_file() else ()
    return [event for event in events if {"kind", "step"} <= event.keys()]


def _flat(values: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{key}/{inner}", v) for inner, v in value.items())
        else:
            yield key, value


def _rewrite(path: Path, objects: Iterable[Any]) -> None:
    """Atomically, because a kill halfway would lose the log."""
    write_text_whole(path, "".join(_lines(objects)))


def _lines(objects: Iterable[Any]) -> list[str]:
    return [json.dumps(o, ensure_ascii=False) + "\n" for o in objects]
