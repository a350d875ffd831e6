"""The server of the page of `limner play`.

    GET  /        the page
    GET  /model   information about the model, as JSON
    POST /draw    `DrawRequest` as JSON; responds with one line of JSON per event of `Painter.draw`
    POST /newest  load the newest checkpoint of the run

Closing the connection stops the sampling.
"""

from __future__ import annotations

from collections.abc import Callable

from limner.apps.play.painter import Painter
from limner.apps.play.request import DrawRequest
from limner.apps.serving.server import LocalHandler, LocalServer


class Server(LocalServer):
    """Args:
    port: the port to listen on; 0: any free port.

    Raises:
        LimnerError: the port is in use or not permitted.
    """

    command = "play"

    def __init__(self, painter: Painter, port: int) -> None:
        self.painter = painter
        super().__init__(Handler, port)

    def exit_code(self) -> int:
        """Stop a running request; 130 if there was one, otherwise 0."""
        return 130 if self.painter.stop() else 0


class Handler(LocalHandler):
    server: Server

    def gets(self) -> dict[str, Callable[[], None]]:
        return {"/": self.page, "/model": self.model}

    def posts(self) -> dict[str, Callable[[], None]]:
        return {"/draw": self.draw, "/newest": self.newest}

    def page(self) -> None:
        self.answer_page("limner.apps.play", "play.html")

    def model(self) -> None:
        self.answer_json(self.server.painter.about())

    def newest(self) -> None:
        self.body()
        self.server.painter.take_newest()
        self.model()

    def draw(self) -> None:
        values = self.body()
        self.answer_events(lambda tell: self.server.painter.draw(DrawRequest.read(values), tell))
