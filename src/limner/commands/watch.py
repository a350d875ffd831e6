"""`limner watch`: runs on a page in the browser, while they go on and afterwards."""

from __future__ import annotations

import argparse
from pathlib import Path

from limner.commands.common import Commands, Parent, device_flags, parts_flags
from limner.commands.serving import serve

PORT = 8766


def add(commands: Commands, common: Parent) -> None:
    watch = commands.add_parser(
        "watch",
        parents=[common],
        help="show runs in the browser while they train: losses, previews, what they look at",
        epilog="On a remote machine: connect with ssh -L 8766:localhost:8766 HOST, run limner "
        "watch RUN --no-browser there, and open the printed address here.",
    )
    watch.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run folder (training.output_dir), or a folder of runs",
    )
    watch.add_argument("--port", type=int, default=PORT, help=f"default {PORT}; 0: any free one")
    watch.add_argument(
        "--no-browser", action="store_true", help="print the address instead of opening a browser"
    )
    parts_flags(watch)
    device_flags(watch)
    watch.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from limner.apps.watch.explain import Explainer
    from limner.apps.watch.runs import find_runs, names_of
    from limner.apps.watch.server import Server

    names = ("vae", "text_encoder", "device", "dtype")
    given = {name: getattr(options, name) for name in names}
    folders = names_of(find_runs(options.runs))
    count = f"{len(folders)} runs" if len(folders) > 1 else next(iter(folders))

    def opened() -> Server:
        return Server(folders, Explainer(**given), options.port)

    return serve(opened, f"Watch {count} at", not options.no_browser)
