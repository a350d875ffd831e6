"""What a run leaves behind in words and numbers: log.jsonl, the tracker, and refused.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from limner.data.rows import Refused


class RunLog:
    """Appends one JSON object per event; also sends the numbers to accelerate's trackers.

    A run resumed at step N forgets what was logged after N, so that the log of a resumed run is
    that of an uninterrupted one.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, resumed_at: int) -> None:
        self.accelerator = accelerator
        self.path = folder / "log.jsonl"
        self.refused_path = folder / "refused.jsonl"
        self.refused: set[str] = set()
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            kept = [e for e in read_log(self.path) if e["step"] <= resumed_at] if resumed_at else []
            _write_lines(self.path, kept, "w")
            _write_lines(self.refused_path, (), "w")

    def write(self, kind: str, step: int, **values: Any) -> None:
        if not self.accelerator.is_main_process:
            return
        _write_lines(self.path, [{"kind": kind, "step": step, **values}], "a")
        numbers = {f"{kind}/{k}": v for k, v in _flat(values) if isinstance(v, int | float)}
        if numbers:
            self.accelerator.log(numbers, step=step)

    def refuse(self, rows: Iterable[Refused]) -> list[Refused]:
        """List rows that cannot be used, each once; returns those that are new."""
        new = [row for row in rows if row.key not in self.refused]
        self.refused.update(row.key for row in new)
        if new and self.accelerator.is_main_process:
            _write_lines(self.refused_path, [asdict(row) for row in new], "a")
        return new


def read_log(path: Path) -> list[dict[str, Any]]:
    """The events of a log.jsonl; a last line that a crash cut short is left out."""
    events = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                events.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return events


def _flat(values: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{key}/{inner}", v) for inner, v in value.items())
        else:
            yield key, value


def _write_lines(path: Path, objects: Iterable[Any], mode: str) -> None:
    with path.open(mode, encoding="utf-8") as file:
        file.writelines(json.dumps(o, ensure_ascii=False) + "\n" for o in objects)
