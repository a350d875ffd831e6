"""torch's cache of compiled code and the C++ compiler behind it, as `limner doctor` looks at them.

What is there is code that torch.compile made for this processor: it may be deleted while nothing
trains, and is made again, which takes a minute or two.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from limner.device import compile_cache, remove_cut_libraries

PROGRAM = 'extern "C" int forty_two() { return 42; }\n'
PATIENCE = 60
"""Seconds in which even a busy machine compiles it."""


@dataclass(frozen=True)
class Cache:
    """What was found.

    Attributes:
        bytes, files: that are there.
        free: bytes on its disk.
        removed: libraries without content, left by a compiler that was killed, which are gone now.
        closed: why it cannot be written to; None: it can.
    """

    place: Path
    bytes: int
    files: int
    free: int
    removed: int
    closed: str | None


def look_at_cache() -> Cache | None:
    """None: this version of torch does not say where it is. Leaves no file behind."""
    try:
        place = compile_cache()
    except OSError as error:  # torch makes the folder
        where = Path(os.fsdecode(error.filename or "an unknown place"))
        return Cache(where, 0, 0, 0, 0, error.strerror or str(error))
    if place is None:
        return None
    removed = len(remove_cut_libraries())
    total = files = 0
    for folder, _, names in os.walk(place):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:  # a run has just replaced it
                continue
            files += 1
    there = next(path for path in (place, *place.absolute().parents) if path.is_dir())
    closed = None
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        closed = error.strerror or str(error)
    return Cache(place, total, files, shutil.disk_usage(there).free, removed, closed)


def why_no_compiler(place: Path) -> tuple[str, str | None]:
    """The C++ compiler that torch takes, and why it does not work; None: it does. What it compiles
    in the place of torch's cache is loaded, which a disk that runs no programs refuses.

    `limner.device.why_not_compile` may find its tiny program in the cache, compiled before.
    """
    name = "C++ compiler"
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        name = get_cpp_compiler()
    except ImportError:  # an inner module, which other versions of torch may not have
        name = os.environ.get("CXX", "g++")
    except Exception as error:  # torch finds none
        return name, " ".join(str(error).split())[:200] or type(error).__name__
    if platform.system() == "Windows":  # it needs an environment that torch makes for it
        return name, None if shutil.which(name) else "not found"
    there = next(path for path in (place, *place.absolute().parents) if path.is_dir())
    try:
        with tempfile.TemporaryDirectory(dir=there) as folder:
            source, library = Path(folder) / "program.cpp", Path(folder) / "program.so"
            source.write_text(PROGRAM, "utf-8")
            command = [name, "-shared", "-fPIC", str(source), "-o", str(library)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
            if done.returncode:
                return name, " ".join(done.stderr.split())[:200] or f"exit code {done.returncode}"
            if ctypes.CDLL(str(library)).forty_two() != 42:
                return name, "what it compiles gives wrong results"
    except (OSError, subprocess.SubprocessError) as error:
        return name, " ".join(str(error).split())[:200]
    return name, None
