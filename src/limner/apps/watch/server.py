"""The server of the page of `limner watch`.

GET  /          the page
GET  /runs      all runs in a few figures, as JSON
GET  /run       ?run=NAME&version=N: everything of a run; 204 if it still is version N
GET  /preview   ?run=NAME&step=N: a preview, PNG; &columns=N: with at most so many in a row
GET  /film      ?run=NAME: its previews as an animated WebP
POST /explain   `ExplainRequest` as JSON; responds with one line of JSON per event of
                `Explainer.explain`
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from limner.apps.serving.request import read_request
from limner.apps.serving.server import LocalHandler, LocalServer, Refusal
from limner.apps.watch.explain import Explainer, ExplainRequest
from limner.apps.watch.runs import LiveRun
from limner.apps.watch.view import contents, in_order, summary
from limner.errors import LimnerError
from limner.inference.contact_sheet import in_fewer_columns
from limner.reports.embedded_images import UNREADABLE

MOST_BYTES = 2**26
"""Of a preview that is sent."""
log = logging.getLogger(__name__)


class Server(LocalServer):
    """Args:
    folders: of the runs, by name.
    explainer: draws from their checkpoints.
    port: the port to listen on; 0: any free port.

    Raises:
        LimnerError: the port is in use or not permitted.
    """

    command = "watch"

    def __init__(self, folders: Mapping[str, Path], explainer: Explainer, port: int) -> None:
        self.runs = {name: LiveRun(name, folder) for name, folder in folders.items()}
        self.explainer = explainer
        super().__init__(Handler, port)

    def exit_code(self) -> int:
        """Stop what is being drawn; 130 if there was something, otherwise 0."""
        return 130 if self.explainer.stop() else 0


class Handler(LocalHandler):
    server: Server

    def gets(self) -> dict[str, Callable[[], None]]:
        return {
            "/": self.page,
            "/runs": self.all_runs,
            "/run": self.one_run,
            "/preview": self.preview,
            "/film": self.film,
        }

    def posts(self) -> dict[str, Callable[[], None]]:
        return {"/explain": self.explain}

    def page(self) -> None:
        self.answer_page("limner.apps.watch", "watch.html")

    def all_runs(self) -> None:
        self.answer_json(in_order(self.told(run, summary) for run in self.server.runs.values()))

    def one_run(self) -> None:
        run = self.run()
        version = self.told(run, lambda run: {"version": run.look()[0]})["version"]
        if version >= 0 and self.query.get("version") == str(version):
            self.answer(b"", "application/json", status=204)
        else:
            self.answer_json(self.told(run, contents))

    def preview(self) -> None:
        _, run, _ = self.run().look()
        for step, path in run.previews:
            if str(step) == self.query.get("step"):
                try:
                    if path.stat().st_size > MOST_BYTES:
                        break
                    data, columns = path.read_bytes(), self.query.get("columns", "")
                    if re.fullmatch("[1-9]", columns):
                        data = narrowed(data, int(columns))
                    return self.answer(data, "image/png")
                except OSError:
                    break
        raise Refusal(404, "there is no such preview")

    def film(self) -> None:
        film = self.run().film()
        if film is None:
            raise Refusal(404, "a film needs two previews")
        self.answer(film, "image/webp")

    def explain(self) -> None:
        values = self.body()

        def work(tell: Callable[[dict[str, object]], None]) -> None:
            asked = read_request(ExplainRequest, values)
            if asked.run not in self.server.runs:
                raise LimnerError(f"no run is called {asked.run}")
            self.server.explainer.explain(asked, self.server.runs[asked.run].folder, tell)

        self.answer_events(work)

    def told(self, run: LiveRun, what: Callable[[LiveRun], dict[str, Any]]) -> dict[str, Any]:
        """What is told of a run; of one whose files cannot be read, why, so that the others are
        shown."""
        try:
            return what(run)
        except Exception as error:
            log.debug("cannot tell of %s", run.name, exc_info=True)
            why = str(error) or type(error).__name__
            return {"name": run.name, "version": -1, "status": "unreadable", "message": why}

    def run(self) -> LiveRun:
        """The run that the URL names. Raises Refusal."""
        name = self.query.get("run", "")
        if name not in self.server.runs:
            raise Refusal(404, "no run has this name")
        return self.server.runs[name]


def narrowed(data: bytes, columns: int) -> bytes:
    """A preview, PNG, with at most so many pictures in a row; what is none stays as it is."""
    try:
        with Image.open(io.BytesIO(data)) as sheet:
            narrow = in_fewer_columns(sheet, columns)
    except UNREADABLE:
        return data
    if narrow is None:
        return data
    buffer = io.BytesIO()
    narrow.save(buffer, "PNG")
    return buffer.getvalue()
