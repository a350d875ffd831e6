"""The page to draw with, served to this machine and to nobody else.

    GET  /        the page
    GET  /model   what is drawn from, as JSON
    POST /draw    `Asked` as JSON; the answer is a line of JSON for each event of `Painter.draw`
    POST /newest  draw from the run's newest checkpoint from now on

It listens on loopback, and answers only who asks for it by that name, so that no page of the web
can reach it through the browser: a name that was pointed here (DNS rebinding) is refused by Host,
another page's requests by Origin and by their content type. Who closes the connection ends the
drawing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import secrets
import socketserver
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from limner.errors import LimnerError
from limner.playing.asked import Asked
from limner.playing.painter import Painter

LOOPBACK = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost", "::1")
MOST_BYTES = 64 * 2**20
"""Of a request: a start picture is in it."""
POLICY = (
    "default-src 'none'; img-src data: blob:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; "
    "style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'"
)
log = logging.getLogger("limner")


class Server(ThreadingHTTPServer):
    """Args:
    port: to listen at; 0: any that is free.

    Raises:
        LimnerError: the port is taken, or may not be had.
    """

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # there it would share the port with another program

    def __init__(self, painter: Painter, port: int) -> None:
        self.painter = painter
        try:
            super().__init__((LOOPBACK, port), Handler)
        except (OSError, OverflowError) as error:
            taken = getattr(error, "errno", None) == errno.EADDRINUSE
            why = "is taken by another program" if taken else f"cannot be used ({error})"
            raise LimnerError(f"--port {port} {why}; take another, or 0 for any") from None

    def server_bind(self) -> None:
        """Without the look-up of a name, which takes seconds where a resolver does not answer."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = LOOPBACK, self.server_address[1]

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "limner", ""

    def do_GET(self) -> None:
        if not self.is_ours():
            return
        if self.path == "/":
            nonce = secrets.token_urlsafe(16)
            page = files("limner.playing").joinpath("play.html").read_text(encoding="utf-8")
            policy = {"Content-Security-Policy": POLICY.format(nonce=nonce)}
            self.answer(page.replace("NONCE", nonce).encode(), "text/html; charset=utf-8", policy)
        elif self.path == "/model":
            self.answer_json(self.server.painter.about())
        else:
            self.refuse(404, "there is no such page")

    def do_POST(self) -> None:
        if not self.is_ours() or (values := self.body()) is None:
            return
        if self.path == "/draw":
            self.draw(values)
        elif self.path == "/newest":
            try:
                self.server.painter.take_newest()
            except LimnerError as error:
                self.refuse(409, str(error))
            else:
                self.answer_json(self.server.painter.about())
        else:
            self.refuse(404, "there is no such page")

    # ---- who may ask -----------------------------------------------------------------------

    def is_ours(self) -> bool:
        """Whether the browser means this server, and no other page asks through it."""
        host = self.headers.get("Host", "")
        if urlsplit(f"//{host}").hostname not in NAMES:
            self.refuse(403, f"asked for as {host!r}; it answers to localhost alone")
            return False
        origin = self.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != host:
            self.refuse(403, "asked by another page")
            return False
        return True

    def body(self) -> Any | None:
        """The JSON that came; None: it was refused."""
        if self.headers.get_content_type() != "application/json":
            self.refuse(415, "a request is application/json")
            return None
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            self.refuse(413, f"a request has at most {MOST_BYTES:,} bytes, and says how many")
            return None
        try:
            return json.loads(self.rfile.read(int(length)))
        except ValueError as error:  # of JSON, or of UTF-8
            self.refuse(400, f"this is no JSON: {error}")
            return None

    # ---- answers ---------------------------------------------------------------------------

    def draw(self, values: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        try:
            self.server.painter.draw(Asked.read(values), self.tell)
        except ConnectionError:
            pass  # the page was closed, or asked to stop
        except LimnerError as error:
            self.tell_last({"kind": "error", "message": str(error)})
        except Exception as error:  # a kernel that fails, memory that runs out: go on serving
            log.exception("a drawing failed")
            reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
            self.tell_last({"kind": "error", "message": f"{type(error).__name__}: {reason}"})
        else:
            self.tell_last({"kind": "done"})

    def tell(self, event: dict[str, Any]) -> None:
        """Raises ConnectionError if nobody listens any more."""
        self.wfile.write(json.dumps(event).encode() + b"\n")
        self.wfile.flush()

    def tell_last(self, event: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):
            self.tell(event)

    def answer_json(self, values: Any) -> None:
        self.answer(json.dumps(values).encode(), "application/json")

    def refuse(self, status: int, why: str) -> None:
        body = json.dumps({"message": why}).encode()
        self.answer(body, "application/json", status=status)

    def answer(
        self, body: bytes, kind: str, headers: dict[str, str] | None = None, status: int = 200
    ) -> None:
        self.send_response(status)
        always = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        length = {"Content-Type": kind, "Content-Length": str(len(body))}
        for name, value in {**always, **length, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, format: str, *values: Any) -> None:
        log.debug(format, *values)
