"""The server: a socket, and uvicorn in a thread, so that signals stay with the main thread."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Callable
from types import TracebackType

from limner.apps.images_api.access import VARIABLE, is_loopback
from limner.apps.images_api.limits import Limits
from limner.apps.images_api.models import Model
from limner.errors import LimnerError

PATIENCE = 30
"""Seconds for answers to be sent at the end; a connection that nobody uses is kept as long."""


def check_installed() -> None:
    """Raises LimnerError if the optional packages are missing."""
    try:
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise LimnerError(
            "limner serve requires the packages starlette, uvicorn, and python-multipart "
            f'({error.name} is missing); run pip install "limner[serve]"'
        ) from None


def check_host(host: str, key: str | None) -> None:
    """Raises LimnerError: other machines would be served without a key."""
    if key is None and not is_loopback(host):
        raise LimnerError(
            f"--host {host} is reached by other machines, and without an API key anyone could "
            f"draw; set {VARIABLE}, or use --api-key-file FILE"
        )


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that is taken, but does not listen yet. Raises LimnerError."""
    try:
        if not 0 <= port < 2**16:  # some systems would take the rest of a division
            raise OverflowError("ports are numbers from 0 to 65535")
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        taken = socket.socket(family, kind, protocol)
        try:
            if os.name != "nt":  # there it would share the port
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
        except BaseException:
            taken.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise LimnerError(
                f"--port {port} is in use by another program; use another, or 0 for any free port"
            ) from None
        raise LimnerError(
            f"--host {host} --port {port} cannot be used ({error}); use an address of this machine"
        ) from None
    return taken


class ImagesServer:
    """Serves from the beginning of a `with` block to its end, at the latest.

    Args:
        open_models: opens the models; called after the address is known to be free.
        host, port: where to listen; port 0: any free one.
        key: the API key; None: on loopback only.

    Raises:
        LimnerError: the address is taken, needs a key, or a model cannot be opened.
    """

    def __init__(
        self,
        open_models: Callable[[], dict[str, Model]],
        host: str = "127.0.0.1",
        port: int = 0,
        key: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        check_installed()
        check_host(host, key)
        import uvicorn

        from limner.apps.images_api.app import ImagesApi

        self.socket = bound_socket(host, port)
        try:
            self.api = ImagesApi(open_models(), limits or Limits(), key)
        except BaseException:
            self.socket.close()
            raise
        self.port = self.socket.getsockname()[1]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        self.server = uvicorn.Server(
            uvicorn.Config(
                self.api.app,
                http="h11",
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=PATIENCE,
                timeout_graceful_shutdown=PATIENCE,
            )
        )
        self.thread = threading.Thread(target=self._serve, daemon=True, name="limner-serving")

    def _serve(self) -> None:
        asyncio.run(self.server.serve(sockets=[self.socket]))

    def __enter__(self) -> ImagesServer:
        self.thread.start()
        while not self.server.started and self.thread.is_alive():
            self.thread.join(0.01)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Finish what is being drawn, and refuse what comes meanwhile with 503; then end."""
        self.api.stop()
        for worker in set(self.api.workers.values()):
            wait_for(worker.thread)
        self.server.should_exit = True
        wait_for(self.thread)


def wait_for(thread: threading.Thread) -> None:
    """Its end; Windows hears no Ctrl-C in a wait without a time limit."""
    while thread.is_alive():
        thread.join(0.2)
