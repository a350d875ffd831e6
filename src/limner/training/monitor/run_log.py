"""Logging of a run: log.jsonl, trackers, and refused.jsonl.

What people are told is logged as everywhere, by `logging.getLogger(__name__).info(...)`; of
`limner.training` and `limner.checkpoint` a run keeps it in log.jsonl, too.

A disk that is full does not end a run for the sake of its log: lines wait in memory until they can
be written.
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
"""Not of `limner.training`: that the log cannot be written is not written into it."""
MOST_WAITING = 10_000
"""Lines that wait for a disk; the oldest are given up beyond that."""


class RunEvents(logging.Handler):
    """Hands what is told while a run is opened and trained to its log.

    What the thread of another run tells, where two are trained at once, is that run's alone.

    Attributes:
        write: takes a sentence; None: it waits until `write_waiting`.
    """

    OF = ("limner.training", "limner.checkpoint")
    threads: ClassVar[set[int]] = set()
    """In which a run is opened or trained now."""

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
            return  # a process that loads pictures, forked from that of the run
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

    A run resumed at step N forgets what was logged after N, so that the log of a resumed run is
    that of an uninterrupted one.

    Args:
        places: paths that what is logged may name; the log may be shared, and says of each the
            last name alone. (refused.jsonl, by which rows are mended, has them whole.)
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
        if numbers and self.trackers and kind != "event":
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
            end = path.stat().st_size if path.exists() else 0  # raises, too, if the drive is away
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(_lines(lines))
        except OSError as error:
            if end is not None:
                with contextlib.suppress(OSError):  # what did fit would be there twice, or in half
                    os.truncate(path, end)
            if not waited:
                log.warning(
                    f"cannot write {path} ({error.strerror}); its lines are kept in memory until "
                    "it can"
                )
            self.waiting[path] = lines[-MOST_WAITING:]


def list_refused(folder: Path, rows: Iterable[Refused]) -> None:
    """Write refused.jsonl if there is anything to list."""
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
    """Whole or not at all, as a kill in the middle would lose what was logged."""
    write_text_whole(path, "".join(_lines(objects)))


def _lines(objects: Iterable[Any]) -> list[str]:
    return [json.dumps(o, ensure_ascii=False) + "\n" for o in objects]
