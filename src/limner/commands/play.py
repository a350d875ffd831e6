"""`limner play`: a page in the browser to draw with."""

from __future__ import annotations

import argparse
from pathlib import Path

from limner.commands.common import A_MODEL, Commands, Parent, flag

PORT = 8765


def add(commands: Commands, common: Parent) -> None:
    play = commands.add_parser(
        "play",
        parents=[common],
        help="draw in the browser, on a page that this machine alone can open",
        epilog="On another machine over SSH: ssh -L 8765:localhost:8765 HOST, and then "
        "limner play CHECKPOINT --no-browser there; the page is http://localhost:8765/ here.",
    )
    play.add_argument("checkpoint", metavar="CHECKPOINT", help=A_MODEL)
    play.add_argument("--port", type=int, default=PORT, help=f"default {PORT}; 0: any free one")
    play.add_argument("--no-browser", action="store_true", help="only say where the page is")
    play.add_argument("--output", type=Path, metavar="FOLDER", help="keep every drawing here, too")
    play.add_argument("--vae", help="where the autoencoder is now, if it was moved")
    flag(play, "--text_encoder", help="where the text encoder is now, if it was moved")
    play.add_argument("--guide", metavar="CHECKPOINT", help="a weaker model, to move away from")
    play.add_argument("--device", choices=("cuda", "mps", "cpu"), help="default: the best")
    play.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32",
        help="bfloat16: faster where hardware has it, and nearly the same pictures",
    )  # fmt: skip
    play.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    import webbrowser

    from limner.playing.painter import Painter
    from limner.playing.server import Server

    names = ("vae", "text_encoder", "guide", "device", "dtype")
    painter = Painter(
        options.checkpoint, options.output, **{name: getattr(options, name) for name in names}
    )
    with Server(painter, options.port) as server:
        print(f"Draw at {server.address} (Ctrl-C ends it)", flush=True)
        if not options.no_browser:
            webbrowser.open(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
