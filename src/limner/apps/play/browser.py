"""A browser is opened without telling the address, which holds a secret, to all users."""

from __future__ import annotations

import os
import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path

PAGE = """<!doctype html>
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={address}">
<title>Limner</title>
<a href="{address}">Limner</a>
"""


@contextmanager
def browser_opened(address: str) -> Iterator[None]:
    """Open the address in a browser, if there is one.

    What a program is started with can be read by every user of the machine. So the browser gets a
    file that only this user may read, and that leads there; it is deleted in the end.
    """
    # Browsers that Ubuntu installs as snaps see no other folder than the home.
    folder = Path.home() if Path("/snap").is_dir() else None
    try:
        number, name = tempfile.mkstemp(prefix="limner-play-", suffix=".html", dir=folder)
    except OSError:  # no space: the address stands in the terminal
        yield
        return
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(PAGE.format(address=escape(address)))
        webbrowser.open(Path(name).as_uri())
        yield
    finally:
        Path(name).unlink(missing_ok=True)
