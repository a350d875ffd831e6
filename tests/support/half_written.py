"""What a process that was killed leaves behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from limner.files import atomic


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def left_behind(place: Path, state: str, pid: int, host: str | None = None) -> Path:
    """As a killed process leaves it."""
    name = f".{place.name}.{host or atomic._host()}-{pid}-0.{state}"
    staged = place.with_name(name)
    staged.mkdir()
    (staged / "a").write_text("theirs", "utf-8")
    return staged


def dead() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid
