"""`limner play`: a page in the browser to draw with."""

from __future__ import annotations

import argparse
from pathlib import Path

from limner.commands.common import A_MODEL, Commands, Parent, device_flags, parts_flags
from limner.commands.serving import serve

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
    from limner.apps.play.painter import Painter
    from limner.apps.play.server import Server

    names = ("vae", "text_encoder", "guide", "device", "dtype")
    given = {name: getattr(options, name) for name in names}

    def opened() -> Server:
        return Server(Painter(options.checkpoint, options.output, **given), options.port)

    return serve(opened, "Draw at", not options.no_browser)
