"""Opening a browser without exposing the URL, which contains a token, to other users."""

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
    """Open the URL in a browser, if there is one.

    Command lines are visible to every user of the machine. Therefore the browser opens a file that
    is readable only by this user and redirects to the URL; it is deleted at the end.
    """
    # Browsers installed as snaps on Ubuntu can only read the home folder.
    folder = Path.home() if Path("/snap").is_dir() else None
    try:
        number, name = tempfile.mkstemp(prefix="limner-play-", suffix=".html", dir=folder)
    except OSError:  # no space; the URL is printed in the terminal
        yield
        return
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(PAGE.format(address=escape(address)))
        webbrowser.open(Path(name).as_uri())
        yield
    finally:
        Path(name).unlink(missing_ok=True)
