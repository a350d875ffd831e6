"""Runs that are shown, and their files, read again only where they have changed."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limner.console import printable
from limner.errors import LimnerError
from limner.files.folder_lock import TRAINING, is_written_by
from limner.files.output_folders import is_training_run
from limner.reports.film import film_of
from limner.reports.run_folder import Run, run_of

LAST_BYTES = 512
"""Of a log, by which it is seen whether it is still the same."""
MOST_RUNS = 200
"""The most runs of a folder; the newest are shown."""


def find_runs(places: Sequence[Path]) -> list[Path]:
    """Run folders: each place, if it is one, and those in it, newest first.

    Raises:
        LimnerError: there is none.
    """
    found: list[Path] = []
    for place in places:
        if not place.is_dir():
            raise LimnerError(
                f"{place} is not a folder; use a run folder that limner train writes "
                "(training.output_dir), or a folder of runs"
            )
        inside = [path for path in place.iterdir() if path.is_dir() and is_run(path)]
        if is_run(place):
            found.append(place)
        elif not inside:
            raise LimnerError(
                f"{place} has no run in it; use a run folder that limner train writes "
                "(training.output_dir), or a folder of runs"
            )
        found += sorted(inside, key=changed, reverse=True)[:MOST_RUNS]
    return list({path.resolve(): path for path in found}.values())


def is_run(folder: Path) -> bool:
    """Whether it is a run, or is being made one."""
    try:
        has_both = (folder / "log.jsonl").is_file() and (folder / "config.yaml").is_file()
        return has_both or (folder / TRAINING).exists() or is_training_run(folder)
    except OSError:  # it may not be read
        return False


def names_of(folders: Sequence[Path]) -> dict[str, Path]:
    """The runs by the shortest ends of their paths that tell them apart."""
    whole = [folder.resolve() for folder in folders]
    longest = max((len(path.parts) for path in whole), default=1)
    for length in range(1, longest + 1):
        names = [printable("/".join(path.parts[-length:])) for path in whole]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, folders, strict=True)) if folders else {}


def changed(folder: Path) -> float:
    """When a run last logged something, in seconds since 1970; of one that has not, when its folder
    last changed."""
    for path in (folder / "log.jsonl", folder):
        try:
            return path.stat().st_mtime
        except OSError:
            continue
    return 0.0


class LiveLog:
    """A log.jsonl that grows: only what is new is read, unless it was written anew, as on a resume
    (which leaves out what came after the checkpoint)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        self.file = (0, 0)
        self.read_to = 0
        self.end = b""  # the last bytes that were read

    def read(self) -> bool:
        """Read what is new; returns whether there was anything."""
        try:
            with self.path.open("rb") as file:
                about = os.fstat(file.fileno())
                same = self.file == (about.st_dev, about.st_ino) and about.st_size >= self.read_to
                if same:  # a file that was replaced twice may have its old number again
                    file.seek(self.read_to - len(self.end))
                    same = file.read(len(self.end)) == self.end
                if not same:
                    self.file, self.lines, self.read_to = (about.st_dev, about.st_ino), [], 0
                    self.end = b""
                file.seek(self.read_to)
                data = file.read()
        except OSError:  # it is not there yet
            changed, self.lines, self.read_to, self.end = bool(self.lines), [], 0, b""
            return changed
        whole = data.rfind(b"\n") + 1  # of a last line, half may be there
        self.read_to += whole
        self.end = (self.end + data[:whole])[-LAST_BYTES:]
        new = [line for part in data[:whole].split(b"\n") if (line := _object(part)) is not None]
        self.lines += new
        return bool(new) or not same


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line.decode("utf-8", "replace")) if line.strip() else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


class LiveRun:
    """A run that is looked at again and again, by several threads."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.log = LiveLog(folder / "log.jsonl")
        self.lock, self.filming = threading.Lock(), threading.Lock()
        self.seen: tuple[Any, ...] = ()
        self.version = 0
        self.contents: Run | None = None
        self.is_stale = True
        self.filmed: tuple[Any, bytes | None] = ((), None)

    def film(self) -> bytes | None:
        """The film of its previews, made once of the same ones."""
        _, run, _ = self.look()
        with self.filming:
            if self.filmed[0] != tuple(run.previews):
                self.filmed = tuple(run.previews), film_of(run.previews)
            return self.filmed[1]

    def look(self) -> tuple[int, Run, bool]:
        """A number that grows when anything has changed, what is there, and whether something is
        training there."""
        with self.lock:
            training = is_written_by(self.folder / TRAINING)
            self.is_stale = self.log.read() or self.is_stale
            stamps = map(self._stamp, ("config.yaml", "results.json", "refused.jsonl"))
            seen = (training, *stamps, self._previews())
            if self.is_stale or seen != self.seen or self.contents is None:
                self.contents = run_of(self.folder, self.log.lines)
                self.version += 1
                self.seen, self.is_stale = seen, False
            return self.version, self.contents, training

    def _stamp(self, name: str) -> tuple[int, int] | None:
        try:
            about = (self.folder / name).stat()
        except OSError:
            return None
        return about.st_mtime_ns, about.st_size

    def _previews(self) -> tuple[str, ...]:
        try:
            return tuple(sorted(os.listdir(self.folder / "previews")))
        except OSError:
            return ()
