"""`limner serve`: OpenAI's images API for trained models. (`serving` is for the local pages.)"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from limner import console
from limner.commands.common import Commands, Parent, device_flags, flag, parts_flags
from limner.commands.serving import second_ctrl_c_ends_at_once
from limner.console import say
from limner.errors import LimnerError

HOST, PORT = "127.0.0.1", 8767


def add(commands: Commands, common: Parent) -> None:
    serve = commands.add_parser(
        "serve",
        parents=[common],
        help="serve models to programs, with OpenAI's images API",
        epilog="The API key is read from the environment variable LIMNER_API_KEY, or from "
        "--api-key-file. Without one only programs of this machine are served.",
    )
    serve.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT",
        help="run folder, checkpoint, exported file, or Hub id; NAME=CHECKPOINT gives it a name",
    )
    serve.add_argument(
        "--host", default=HOST,
        help=f"address to listen on (default {HOST}: this machine only); others need an API key",
    )  # fmt: skip
    serve.add_argument("--port", type=int, default=PORT, help=f"default {PORT}; 0: any free one")
    serve.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="file that holds the API key"
    )
    flag(
        serve, "--batch_size", type=int, default=16, metavar="N",
        help="images drawn at once, at most (default 16; a CPU takes fewer); 1: no batching",
    )  # fmt: skip
    serve.add_argument(
        "--queue", type=int, default=64, metavar="N",
        help="images that may wait (default 64); further requests are refused with 429",
    )  # fmt: skip
    serve.add_argument(
        "--timeout", type=float, default=120.0, metavar="SECONDS",
        help="for a request, waiting included (default 120)",
    )  # fmt: skip
    parts_flags(serve)
    device_flags(serve)
    serve.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from limner.apps.images_api.access import read_key
    from limner.apps.images_api.limits import read_limits
    from limner.apps.images_api.models import Model, open_models
    from limner.apps.images_api.server import ImagesServer

    limits = read_limits(
        batch_size=options.batch_size, queue=options.queue, timeout=options.timeout
    )
    key = read_key(options.api_key_file)
    names = ("vae", "text_encoder", "dtype")
    given = {name: getattr(options, name) for name in names}

    def opened() -> dict[str, Model]:
        return open_models(options.checkpoints, options.device, **given)

    with second_ctrl_c_ends_at_once():
        server = ImagesServer(opened, options.host, options.port, key, limits)
        # Of prompts, which are the clients' own and whom the answer tells, and for each batch.
        logging.getLogger("limner.inference.generator").setLevel(logging.ERROR)
        with stop_signals() as asked, server:
            models = ", ".join(server.api.models)
            say(f"Serving {models} at {server.address}/v1 (press Ctrl-C to stop)")
            with contextlib.suppress(KeyboardInterrupt):
                # In pieces: Windows hears no Ctrl-C in a wait without a time limit.
                while server.thread.is_alive() and not asked.wait(0.5):
                    pass
            if not server.thread.is_alive():
                raise LimnerError("the server ended by itself; the lines above may say why")
            say("Finishing what is being drawn; press Ctrl-C again to stop at once")
            try:
                server.stop()
            except KeyboardInterrupt:  # after SIGTERM, the first Ctrl-C
                console.finish()
                os._exit(130)
    return 0


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """SIGTERM, as systemd and Docker send it, sets the event."""
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()

    if threading.current_thread() is not threading.main_thread():  # allowed only there
        yield asked
        return
    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
