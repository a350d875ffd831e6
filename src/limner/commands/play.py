"""`limner play`: a page in the browser to draw with."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from limner import console
from limner.commands.common import A_MODEL, Commands, Parent, device_flags, parts_flags
from limner.console import say

PORT = 8765


def add(commands: Commands, common: Parent) -> None:
    play = commands.add_parser(
        "play",
        parents=[common],
        help="generate pictures in the browser, on a page served only to this machine",
        epilog="On a remote machine: connect with ssh -L 8765:localhost:8765 HOST, run limner "
        "play CHECKPOINT --no-browser there, and open the printed address here.",
    )
    play.add_argument("checkpoint", metavar="CHECKPOINT", help=A_MODEL)
    play.add_argument("--port", type=int, default=PORT, help=f"default {PORT}; 0: any free one")
    play.add_argument(
        "--no-browser", action="store_true", help="print the address instead of opening a browser"
    )
    play.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="also save every generated picture to this folder",
    )
    parts_flags(play)
    play.add_argument("--guide", metavar="CHECKPOINT", help="weaker model for autoguidance")
    device_flags(play)
    play.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from limner.apps.play.browser import browser_opened
    from limner.apps.play.painter import Painter
    from limner.apps.play.server import Server

    names = ("vae", "text_encoder", "guide", "device", "dtype")
    with second_ctrl_c_ends_at_once():
        painter = Painter(
            options.checkpoint, options.output, **{name: getattr(options, name) for name in names}
        )
        with Server(painter, options.port) as server:
            with contextlib.suppress(KeyboardInterrupt):
                say(f"Draw at {server.address} (press Ctrl-C to stop)")
                opened = browser_opened(server.address)
                with contextlib.nullcontext() if options.no_browser else opened:
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
