"""Locks that others hold, or left."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from limner.files.folder_lock import Holder


@contextmanager
def another_process(place: Path, name: str | None) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place), name or ""],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def left_behind(path: Path, **values: object) -> Holder:
    """The file of a process, of this one unless something else is said."""
    holder = Holder(**{**Holder.this_process(path).__dict__, **values})
    path.write_text(json.dumps(holder.__dict__), encoding="utf-8")
    return holder


HOLD = """
import sys, time
from pathlib import Path
from limner.files.folder_lock import FolderLock
with FolderLock(Path(sys.argv[1]), "wait", sys.argv[2] or None):
    print("held", flush=True)
    sys.stdin.read()
"""
