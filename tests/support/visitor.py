"""Who opens a page that is served in place of a browser, and then presses Ctrl-C."""

import html
import os
import re
import threading
import urllib.request
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest

from limner.apps.serving.server import LocalServer


def visit_pages(patch: pytest.MonkeyPatch, kept: Path) -> list[str]:
    """From now on each page that is served is kept in a file, and then its server is interrupted.

    Not by a signal, which a process that was started in the background may ignore.

    Returns:
        The addresses that a browser is led to, as they come, by files that only this user reads.
    """
    opened: list[str] = []

    def serve(server: LocalServer) -> None:
        thread = threading.Thread(target=ThreadingHTTPServer.serve_forever, args=(server,))
        thread.start()
        try:
            with urllib.request.urlopen(server.address, timeout=60) as page:
                kept.write_bytes(page.read())
        finally:
            server.shutdown()
            thread.join()
        raise KeyboardInterrupt

    patch.setattr(LocalServer, "serve_forever", serve)

    def open_file(uri: str) -> None:
        path = Path(url2pathname(urlsplit(uri).path))
        assert os.name == "nt" or path.stat().st_mode & 0o077 == 0
        found = re.search('url=(http[^"]+)"', path.read_text("utf-8"))
        assert found
        opened.append(html.unescape(found[1]))

    patch.setattr("webbrowser.open", open_file)
    return opened
