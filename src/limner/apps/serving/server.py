"""A HTTP server for a page on this machine.

It listens on loopback and requires the token of its URL (limner.apps.serving.access), so that other
users of the machine have no access. DNS rebinding is prevented by checking the Host header,
cross-site requests by the Origin header and the content type. Idle and slow clients do not block
others.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import re
import secrets
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from limner.apps.serving.access import Access, is_own_page, means_us
from limner.apps.serving.events import Events
from limner.apps.serving.page_parts import source, with_parts
from limner.errors import LimnerError

LOOPBACK = "127.0.0.1"
MOST_BYTES = 64 * 2**20
"""Maximum size of a request, which may contain an initial image."""
MOST_CONNECTIONS = 64
PATIENCE = 30.0
"""Socket timeout in seconds."""
HEAD_WITHIN = 15.0
"""Time limit for receiving the request headers, in seconds."""
PIECE = 2**16
POLICY = (
    "default-src 'none'; img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; "
    "style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'"
)
NO_TOKEN = (
    "invalid or missing token; open the full URL that `limner {command}` printed in the terminal, "
    "with ?token=... (each start creates a new one)"
)
log = logging.getLogger(__name__)

Tell = Callable[[dict[str, Any]], None]
"""Called with each event; an exception stops what reports them."""


class LocalServer(ThreadingHTTPServer):
    """Args:
    handler: the class that answers requests.
    port: the port to listen on; 0: any free port.

    Raises:
        LimnerError: the port is in use or not permitted.
    """

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # on Windows it would share the port
    request_queue_size = 32
    command = ""
    """The name of the command that serves, for messages."""

    def __init__(self, handler: type[LocalHandler], port: int) -> None:
        self.access = Access()
        self.free = threading.Semaphore(MOST_CONNECTIONS)
        try:
            super().__init__((LOOPBACK, port), handler)
        except (OSError, OverflowError) as error:
            taken = getattr(error, "errno", None) == errno.EADDRINUSE
            why = "is in use by another program" if taken else f"cannot be used ({error})"
            raise LimnerError(f"--port {port} {why}; use another, or 0 for any free port") from None

    def server_bind(self) -> None:
        """Skip the reverse DNS lookup, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = LOOPBACK, self.server_address[1]

    @property
    def address(self) -> str:
        """The URL with the token."""
        return f"http://{LOOPBACK}:{self.server_port}/?token={self.access.token}"

    def exit_code(self) -> int:
        """Stop what is running for a request; 130 if there was something, otherwise 0."""
        return 0

    # ---- connections -----------------------------------------------------------------------

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether a thread is available; otherwise the connection is closed."""
        return self.free.acquire(blocking=False)

    def process_request(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request(request, client_address)
        except BaseException:  # the thread, which would have released it, was not started
            self.free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log one line; the base class prints a traceback whenever a client disconnects."""
        error = sys.exception()
        level = logging.DEBUG if isinstance(error, OSError) else logging.ERROR
        log.log(level, "a request failed with %s: %s", type(error).__name__, error)


class Refusal(Exception):
    """An error response: status and reason."""

    def __init__(self, status: int, why: str) -> None:
        self.status, self.why = status, why


class LocalHandler(BaseHTTPRequestHandler):
    """Checks who asks and passes the request on to one of `gets` or `posts`."""

    server: LocalServer
    server_version, sys_version = "limner", ""
    timeout = PATIENCE
    query: Mapping[str, str]
    """The parameters of the URL; of several with one name, the last."""

    def gets(self) -> dict[str, Callable[[], None]]:
        """What answers GET, by path."""
        raise NotImplementedError

    def posts(self) -> dict[str, Callable[[], None]]:
        """What answers POST, by path."""
        raise NotImplementedError

    def setup(self) -> None:
        super().setup()
        # The socket timeout alone would allow a client to send one byte at a time forever.
        self.waiting = threading.Timer(HEAD_WITHIN, self.hear_no_more)
        self.waiting.daemon = True
        self.waiting.start()

    def finish(self) -> None:
        self.waiting.cancel()
        with contextlib.suppress(OSError):
            super().finish()

    def hear_no_more(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)

    def do_GET(self) -> None:
        self.respond(self.gets())

    def do_POST(self) -> None:
        self.respond(self.posts())

    def respond(self, answers: dict[str, Callable[[], None]]) -> None:
        self.waiting.cancel()
        path, _, query = self.path.partition("?")
        try:
            self.check_who_asks(query)
            if path not in answers:
                raise Refusal(404, "page not found")
            self.query = {name: values[-1] for name, values in parse_qs(query).items()}
            answers[path]()
        except Refusal as refusal:
            self.refuse(refusal.status, refusal.why)
        except LimnerError as error:
            self.refuse(409, str(error))
        except OSError:
            raise  # a connection error
        except Exception as error:  # keep serving
            log.error("%s failed with %s: %s", path, type(error).__name__, error)
            log.debug("traceback:", exc_info=True)
            self.refuse(500, f"{type(error).__name__}: {error}")

    # ---- access control --------------------------------------------------------------------

    def check_who_asks(self, query: str) -> None:
        """Raises Refusal unless the Host, the Origin, and the token are valid."""
        hosts = self.headers.get_all("Host", [])
        if not means_us(hosts):
            shown = ", ".join(map(repr, hosts))[:200] or "none"
            raise Refusal(403, f"invalid Host header: {shown}; open the page as localhost")
        if not is_own_page(self.headers.get("Origin"), hosts[0]):
            raise Refusal(403, "cross-origin requests are not allowed")
        given = self.headers.get_all("Cookie", []), self.headers.get("Authorization")
        if not self.server.access.is_granted(query, *given):
            raise Refusal(403, NO_TOKEN.format(command=self.server.command))

    def body(self) -> Any:
        """The JSON body of the request. Raises Refusal."""
        if self.headers.get_content_type() != "application/json":
            raise Refusal(415, "the content type must be application/json")
        lengths = self.headers.get_all("Content-Length", [])
        one = len(lengths) == 1 and re.fullmatch("[0-9]{1,12}", lengths[0].strip())
        if not one or int(lengths[0]) > MOST_BYTES:
            raise Refusal(413, f"the Content-Length must be given and at most {MOST_BYTES:,} bytes")
        data = self.rfile.read(int(lengths[0]))
        if len(data) < int(lengths[0]):
            raise Refusal(400, "the request is truncated")
        try:
            return json.loads(data)
        except RecursionError:
            raise Refusal(400, "not valid JSON: it is nested too deeply") from None
        except ValueError as error:  # invalid JSON or UTF-8, or a number with too many digits
            raise Refusal(400, f"not valid JSON: {error}") from None

    # ---- responses -------------------------------------------------------------------------

    def answer_page(self, package: str, name: str) -> None:
        """A page of the package, with the cookie that lets its requests in."""
        nonce = secrets.token_urlsafe(16)
        page = with_parts(source(package, name))
        headers = {
            "Content-Security-Policy": POLICY.format(nonce=nonce),
            "Set-Cookie": self.server.access.cookie,
        }
        self.answer(page.replace("NONCE", nonce).encode(), "text/html; charset=utf-8", headers)

    def answer_events(self, work: Callable[[Tell], None]) -> None:
        """Do the work and send one line of JSON for each event that it reports, then "done", or
        "error" with a message. The work is stopped, by a ConnectionError from its `tell`, when the
        connection is closed."""
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        events = Events(self.write)
        with contextlib.suppress(ConnectionError):  # the page was closed, or stopped it
            events.tell(last_event(work, events.tell))
        events.finish()

    def write(self, data: bytes) -> None:
        """Send in chunks, since the timeout applies to each. Raises OSError."""
        for begin in range(0, len(data), PIECE):
            self.wfile.write(data[begin : begin + PIECE])

    def answer_json(self, values: Any) -> None:
        self.answer(json.dumps(plain(values), allow_nan=False).encode(), "application/json")

    def refuse(self, status: int, why: str) -> None:
        if self.command == "GET" and self.path.partition("?")[0] == "/":  # shown in the browser
            self.answer(f"Limner: {why}\n".encode(), "text/plain; charset=utf-8", status=status)
        else:
            body = json.dumps({"message": why}).encode()
            self.answer(body, "application/json", status=status)

    def answer(
        self, body: bytes, kind: str, headers: dict[str, str] | None = None, status: int = 200
    ) -> None:
        self.send_response(status)
        always = {
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        length = {"Content-Type": kind, "Content-Length": str(len(body))}
        for name, value in {**always, **length, **(headers or {})}.items():
            self.send_header(name, value)
        with contextlib.suppress(OSError):
            self.end_headers()
            self.write(body)

    def log_message(self, format: str, *values: Any) -> None:
        log.debug("%s", (format % values).replace(self.server.access.token, "..."))


def plain(values: Any) -> Any:
    """Values as JSON has them, whatever a file held: what is not finite is null, and what JSON does
    not know is text."""
    if isinstance(values, dict):
        return {str(key): plain(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [plain(value) for value in values]
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    return values if values is None or isinstance(values, str | int) else str(values)


def last_event(work: Callable[[Tell], None], tell: Tell) -> dict[str, Any]:
    """The last event of the work. Raises ConnectionError."""
    try:
        work(tell)
    except ConnectionError:
        raise
    except LimnerError as error:
        return {"kind": "error", "message": str(error)}
    except Exception as error:  # a device error, out of memory: keep serving
        log.exception("generation failed")
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        return {"kind": "error", "message": f"{type(error).__name__}: {reason}"}
    return {"kind": "done"}
