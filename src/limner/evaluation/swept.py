"""A note about checkpoints whose sampling settings were chosen by a sweep."""

from __future__ import annotations

from pathlib import Path

from limner.errors import LimnerError
from limner.files.small_files import read_json

FILE = "sweep.json"


def swept_note(checkpoint: Path) -> str | None:
    """A note to show next to held-out results if a sweep chose the sampling settings.

    Args:
        checkpoint: the checkpoint folder.

    Returns:
        A sentence; None if no sweep stored its settings.

    Raises:
        LimnerError: sweep.json is damaged.
    """
    path = checkpoint / FILE
    if not path.exists():
        return None
    try:
        stored = read_json(path)["stored"]
        about = None if stored is None else str(stored["about"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise LimnerError(
            f"{path} is damaged ({reason}); move it away to start the sweep over"
        ) from None
    return None if about is None else f"sampling settings chosen by limner sweep: {about}"
