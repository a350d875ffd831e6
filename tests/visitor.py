"""Who opens the page of `limner play` in place of a browser, and then presses Ctrl-C."""

import threading
import urllib.request
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from limner.playing.server import Server


def visit_pages(patch: pytest.MonkeyPatch, kept: Path) -> list[str]:
    """From now on each page that is served is kept in a file, and then its server is interrupted.

    Not by a signal, which a process that was started in the background may ignore.

    Returns:
        The addresses that a browser is asked to open, as they come.
    """
    opened: list[str] = []

    def serve(server: Server) -> None:
        thread = threading.Thread(target=ThreadingHTTPServer.serve_forever, args=(server,))
        thread.start()
        try:
            with urllib.request.urlopen(server.address, timeout=60) as page:
                kept.write_bytes(page.read())
        finally:
            server.shutdown()
            thread.join()
        raise KeyboardInterrupt

    patch.setattr(Server, "serve_forever", serve)
    patch.setattr("webbrowser.open", opened.append)
    return opened
