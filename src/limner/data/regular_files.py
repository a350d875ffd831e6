"""Open only regular files of a limited size, never devices or pipes."""

from __future__ import annotations

import os
import stat

MAX_IMAGE_BYTES = 2**30
"""Of one picture file."""
MAX_TABLE_BYTES = 2**31
"""Of one metadata file, which is read as a whole: tens of millions of captions."""
MAX_CAPTION_BYTES = 2**20
"""Of a .txt; a longer one is no caption."""
MAX_SIDECAR_BYTES = 2**24
"""Of a .json beside a picture."""


def why_not_regular(path: str | os.PathLike[str], most: int) -> str | None:
    """Why a file is not to be opened: it is none, or larger than `most` bytes. Raises OSError."""
    about = os.stat(path)
    if stat.S_ISDIR(about.st_mode):
        return "it is a folder"
    if not stat.S_ISREG(about.st_mode):
        return "it is not a regular file, but a device, a pipe, or a socket"
    if about.st_size > most:
        return f"it has {about.st_size:,} bytes, more than the maximum of {most:,} for a file"
    return None
