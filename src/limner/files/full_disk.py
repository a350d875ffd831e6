"""Recognise full-disk errors of any library, and report the space needed and free.

torch says "unexpected pos 26048 vs 25940", safetensors "I/O error", Pillow "encoder error -2".
If an error does not tell, more is written to see which error the system gives.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

FULL = tuple(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name))
_PROBE = 2**20
"""Bytes that are written to see whether there is room, in a folder that is deleted anyway."""
_HIDING = re.compile(r"PytorchStreamWriter|inline_container|unexpected pos|os error|encoder error")
"""Messages of libraries for a file that could not be written, whatever the reason."""
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""Error messages of Rust, and so of safetensors and tokenizers."""


class DiskFull(OSError):
    """There was no room for a file or folder (`filename`), so it was not written.

    `errno` is ENOSPC (the disk is full), EDQUOT (the quota is used up), or EFBIG (files may not be
    so large here); `str()` says how much was needed, where, and how much is free.
    """

    def __init__(self, number: int, path: Path, needed: int | None, room: int) -> None:
        what, folder = os.strerror(number), path.parent
        if number == errno.EFBIG:
            why = (
                f"a file in {folder} may not be this large (ulimit -f, or a limit of the file "
                "system)"
            )
        elif number != errno.ENOSPC:
            why = f"the quota for {folder} is used up"
        elif needed and needed > room:
            why = f"{in_units(needed)} are needed in {folder} and {in_units(room)} are free"
        else:
            why = f"the {in_units(room)} free in {folder} are not enough"
        super().__init__(number, f"{what}: {why}", str(path))

    def __str__(self) -> str:
        return str(self.strerror)


def as_os_error(
    error: BaseException, staging: Path | None, path: Path, needed: int | None = None
) -> OSError | None:
    """The system error behind another error, as DiskFull for a full disk; None: there is none, or
    it is `error` itself.

    Args:
        staging: the folder with what was written so far, which will be deleted. None: nothing is
            deleted, and nothing may be written to find out.
        path: the final path of what was being written.
        needed: its size in bytes, if known.
    """
    if isinstance(error, DiskFull) or not isinstance(error, Exception):
        return None
    number = _number_of(error, staging)
    if number is not None and number in FULL:
        given_back = size_of(staging) if staging else 0
        return DiskFull(number, path, needed, _free(path.parent) + given_back)
    if number is None or isinstance(error, OSError):
        return None
    return OSError(number, os.strerror(number), str(path))


def _number_of(error: Exception, staging: Path | None) -> int | None:
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if found := _OS_ERROR.search(str(error)):
        return int(found[1])
    if staging and (isinstance(error, OSError) or _HIDING.search(str(error))):
        return _asked(staging)
    return None


def _asked(staging: Path) -> int | None:
    """Why nothing more can be written there: the system's error number; None if it can."""
    files = _files(staging)
    newest = max(files, key=lambda path: path.stat().st_mtime_ns, default=staging / "probe")
    try:
        with open(newest, "ab") as file:
            file.write(bytes(_PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno
    return None


def _files(staging: Path) -> list[Path]:
    return [path for path in staging.rglob("*") if path.is_file()]


def size_of(folder: Path) -> int:
    """Total size of the files in a folder, in bytes."""
    total = 0
    for file in _files(folder):
        try:
            total += file.stat().st_size
        except OSError:  # gone by now
            continue
    return total


def _free(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def in_units(size: int) -> str:
    """1536 -> "1.5 KiB"."""
    amount, unit = float(size), "bytes"
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            break
        amount /= 1024
    return f"{amount:,.0f} bytes" if unit == "bytes" else f"{amount:,.1f} {unit}"
