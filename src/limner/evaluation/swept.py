"""What belongs beside the figures of a checkpoint whose sampling settings a sweep chose."""

from __future__ import annotations

from pathlib import Path

from limner.errors import LimnerError
from limner.files.small_files import read_json

FILE = "sweep.json"


def swept_note(checkpoint: Path) -> str | None:
    """What belongs beside held-out figures of a checkpoint whose settings a sweep has chosen.

    Args:
        checkpoint: the checkpoint's own folder.

    Returns:
        A sentence; None: nothing was stored by a sweep.

    Raises:
        LimnerError: its sweep.json is damaged.
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
