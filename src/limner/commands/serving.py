"""Serving a page until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from limner import console
from limner.console import say

if TYPE_CHECKING:  # a command that is only listed in --help needs no server
    from limner.apps.serving.server import LocalServer


def serve(opened: Callable[[], LocalServer], words: str, browser: bool) -> int:
    """Open a server, serve until Ctrl-C, and return the exit code.

    Args:
        words: said before the address.
        browser: open the page in one.
    """
    from limner.apps.serving.browser import browser_opened

    with second_ctrl_c_ends_at_once():
        with opened() as server:
            with contextlib.suppress(KeyboardInterrupt):
                say(f"{words} {server.address} (press Ctrl-C to stop)")
                shown = browser_opened(server.address) if browser else contextlib.nullcontext()
                with shown:
                    server.serve_forever()
            code = server.exit_code()
        say()
        if code:  # Python's own end would crash under a thread that is drawing still
            console.finish()
            os._exit(code)
    return code


@contextlib.contextmanager
def second_ctrl_c_ends_at_once() -> Iterator[None]:
    """The first Ctrl-C is a KeyboardInterrupt, as ever; another one ends the process with exit code
    130 wherever that is on its way out, be it in Python's own end.

    Where Ctrl-C is ignored or somebody else's, as in the background of a shell, it stays so.
    """
    before = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()  # only there it is allowed
    if before is not signal.default_int_handler or not in_main:
        yield
        return

    def at_once(number: int, frame: FrameType | None) -> None:
        os._exit(130)  # not by an exception, whose traceback would be shown

    def first(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, at_once)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is first:
            signal.signal(signal.SIGINT, before)
