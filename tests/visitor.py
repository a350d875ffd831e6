"""Who opens the page of `limner play` in place of a browser, and then presses Ctrl-C."""

import _thread
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path


def visitor(kept: Path) -> Callable[[str], bool]:
    """In place of `webbrowser.open`: keeps the page in a file."""

    def visit(address: str) -> bool:
        def ask() -> None:
            try:
                with urllib.request.urlopen(address, timeout=60) as page:
                    kept.write_bytes(page.read())
            finally:
                _thread.interrupt_main()

        threading.Thread(target=ask).start()
        return True

    return visit
