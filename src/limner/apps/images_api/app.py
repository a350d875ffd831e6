"""The routes of the API.

    GET  /v1/models               the models that are served
    GET  /v1/models/NAME          one of them
    POST /v1/images/generations   `ImagesRequest` as JSON; answers with images
    POST /v1/images/edits         `EditRequest` and files as a form; answers with images
    GET  /images/NAME.png         an image whose URL was asked for, for a while
    GET  /health                  whether it serves, for whoever starts it again
    GET  /metrics                 for Prometheus

Cross-site requests from pages cannot be made: JSON must be sent as such, which a page may do only
after a preflight request, and that is not answered (no CORS); forms are refused from pages of
another origin.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from limner.apps.images_api.access import Access
from limner.apps.images_api.counters import CONTENT_TYPE, Counters
from limner.apps.images_api.edits import EditRequest, check_pictures, read_form
from limner.apps.images_api.errors import ApiError, stopping
from limner.apps.images_api.limits import BODY_WITHIN, MOST_BYTES, MOST_REQUESTS, Limits
from limner.apps.images_api.links import Links
from limner.apps.images_api.models import Model
from limner.apps.images_api.queue import Drawing, Worker
from limner.apps.images_api.request import ImagesRequest
from limner.inference.saving import save_image
from limner.messages import shorten

GONE = 499
"""The status that a request whose client has gone is counted under, as nginx does."""
ALWAYS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
log = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]


class ImagesApi:
    """Args:
    models: by name.
    key: the API key; None: none is asked for.
    """

    def __init__(self, models: dict[str, Model], limits: Limits, key: str | None) -> None:
        self.models, self.limits = models, limits
        self.access, self.counters, self.links = Access(key), Counters(), Links()
        self.stopping = False
        self.running = 0
        """Requests for images that are being answered."""
        self.workers: dict[str, Worker] = {}
        """By the name of a model; models on one device have the same."""
        on_device: dict[str, dict[str, Any]] = {}
        for name, model in models.items():
            on_device.setdefault(str(model.generator.device), {})[name] = model.generator
        for generators in on_device.values():
            worker = Worker(generators, limits.batch_size, limits.queue, self.counters.batch)
            self.workers |= dict.fromkeys(generators, worker)
        self.app = Starlette(
            routes=[
                self._route("/v1/models", self.list_models),
                self._route("/v1/models/{name:path}", self.show_model),
                self._route("/v1/images/generations", self.generate, "POST"),
                self._route("/v1/images/edits", self.edit, "POST"),
                self._route("/images/{name}.png", self.image, needs_key=False),
                self._route("/health", self.health, needs_key=False),
                self._route("/metrics", self.metrics),
            ],
            exception_handlers={HTTPException: self._no_such_route},
        )

    def stop(self) -> None:
        """Refuse new requests; those that are being drawn are finished."""
        self.stopping = True
        for worker in set(self.workers.values()):
            worker.stop()

    # ---- who asks, and what goes wrong ---------------------------------------------------

    def _route(
        self, path: str, endpoint: Endpoint, method: str = "GET", needs_key: bool = True
    ) -> Route:
        async def checked(request: Request) -> Response:
            try:
                self.access.check_host(request.headers.getlist("host"))
                if needs_key:
                    self.access.check_key(request.headers.get("authorization"))
                response = await endpoint(request)
            except ApiError as error:
                response = refusal(error)
            except Exception as error:  # keep serving
                log.error("%s failed with %s: %s", path, type(error).__name__, error)
                log.debug("traceback:", exc_info=True)
                response = refusal(ApiError(500, "internal error; the server's log says more"))
            response.headers.update(ALWAYS)
            return response

        return Route(path, checked, methods=[method])

    async def _no_such_route(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        place = f"{shorten(request.method)[1:-1]} {shorten(request.url.path, 200)[1:-1]}"
        message = f"Unknown request URL: {place}."
        if error.status_code == 405:
            message = f"Not allowed to {place}."
        response = refusal(ApiError(error.status_code, message, code="unknown_url"))
        response.headers.update({**(error.headers or {}), **ALWAYS})
        return response

    # ---- models --------------------------------------------------------------------------

    async def list_models(self, request: Request) -> Response:
        found = [model.about() for model in self.models.values()]
        return JSONResponse({"object": "list", "data": found})

    async def show_model(self, request: Request) -> Response:
        return JSONResponse(self._model(request.path_params["name"]).about())

    def _model(self, name: str | None) -> Model:
        """Raises ApiError."""
        if name is None and len(self.models) == 1:
            return next(iter(self.models.values()))
        if name is None:
            raise ApiError(
                400,
                f"Missing required parameter: 'model'; served are {', '.join(self.models)}.",
                param="model",
                code="missing_required_parameter",
            )
        if name not in self.models:
            raise ApiError(
                404,
                f"The model {shorten(name)} does not exist; served are {', '.join(self.models)}.",
                param="model",
                code="model_not_found",
            )
        return self.models[name]

    # ---- images --------------------------------------------------------------------------

    async def generate(self, request: Request) -> Response:
        async def answer() -> Response:
            return await self._answer(request, ImagesRequest.read(await read_body(request)))

        return await self._timed(answer)

    async def edit(self, request: Request) -> Response:
        async def answer() -> Response:
            self.access.check_origin(
                request.headers.getlist("origin"), request.headers.getlist("host")
            )
            asked, files = await read_form(request)
            return await self._answer(request, asked, files)

        return await self._timed(answer)

    async def _timed(self, answer: Callable[[], Awaitable[Response]]) -> Response:
        """Counts the request and how long it takes."""
        begin, status = time.perf_counter(), 500
        try:
            with self._counted():
                response = await answer()
            status = response.status_code
            return response
        except ApiError as error:
            status = error.status
            raise
        except ClientDisconnect:
            status = GONE
            return Response(status_code=GONE)  # nobody reads it
        finally:
            self.counters.request(status, time.perf_counter() - begin)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Raises ApiError if there are too many requests already, or the server is stopping."""
        if self.stopping:
            raise stopping()
        if self.running >= MOST_REQUESTS:
            raise ApiError(
                429, "too many requests at once", code="rate_limit_exceeded", retry_after=5
            )
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    async def _answer(
        self, request: Request, asked: ImagesRequest, sent: dict[str, bytes] | None = None
    ) -> Response:
        model = self._model(asked.model)
        seeds, settings = asked.seeds(), model.settings(asked)
        if sent is not None and isinstance(asked, EditRequest):
            await asyncio.to_thread(check_pictures, sent, settings.height, settings.width)
            settings = settings.with_more(asked.variation(sent))
        drawing = Drawing(settings, [(asked.prompt, seed) for seed in seeds])
        images = await self._drawn(request, self.workers[model.name], drawing)
        files = await asyncio.to_thread(lambda: [as_png(image) for image in images])
        found = [
            {**self._as_asked(file, asked, request), "seed": seed}
            for file, seed in zip(files, seeds, strict=True)
        ]
        answer = {
            "created": int(time.time()),
            "data": found,
            "output_format": "png",
            "size": f"{drawing.settings.width}x{drawing.settings.height}",
        }
        if drawing.notes:
            answer["warnings"] = drawing.notes
        return JSONResponse(answer)

    def _as_asked(self, file: bytes, asked: ImagesRequest, request: Request) -> dict[str, str]:
        if asked.response_format == "url":
            name = self.links.add(file)
            return {"url": str(request.base_url.replace(path=f"/images/{name}.png"))}
        return {"b64_json": base64.b64encode(file).decode()}

    async def _drawn(self, request: Request, worker: Worker, drawing: Drawing) -> list[Image.Image]:
        """Wait for the images. Raises ApiError, or ClientDisconnect."""
        worker.add(drawing)
        gone: asyncio.Future[None] = asyncio.ensure_future(until_gone(request))
        drawn: asyncio.Future[list[Image.Image]] = asyncio.wrap_future(drawing.result)
        try:
            either: set[asyncio.Future[Any]] = {gone, drawn}
            await asyncio.wait(
                either, timeout=self.limits.timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if drawn.done():
                return drawn.result()
            if gone.done():
                raise ClientDisconnect
            raise ApiError(
                504,
                f"not drawn within {self.limits.timeout:g} seconds; ask for fewer or smaller "
                "images, or later",
                code="timeout",
                retry=False,
            )
        finally:
            worker.drop(drawing)
            gone.cancel()
            drawn.cancel()

    async def image(self, request: Request) -> Response:
        found = self.links.get(request.path_params["name"])
        if found is None:
            raise ApiError(404, "there is no such image, or not any more", code="not_found")
        return Response(found, media_type="image/png")

    # ---- for those who run it ------------------------------------------------------------

    async def health(self, request: Request) -> Response:
        if self.stopping:
            raise stopping()
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        waiting = sum(worker.length() for worker in set(self.workers.values()))
        text = self.counters.text(self.running, waiting)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})


def refusal(error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers)


async def read_body(request: Request) -> bytes:
    """The body of a request with JSON. Raises ApiError, or ClientDisconnect."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "the content type must be application/json", code="invalid_json")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_WITHIN):
            async for piece in request.stream():
                body += piece
                if len(body) > MOST_BYTES:
                    raise ApiError(
                        413, f"the body has more than {MOST_BYTES:,} bytes", code="too_large"
                    )
    except TimeoutError:
        raise ApiError(408, "the body did not arrive in time", code="timeout") from None
    return bytes(body)


async def until_gone(request: Request) -> None:
    """Until the client has closed its connection; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def as_png(image: Image.Image) -> bytes:
    """A file that says how it was drawn, as those of `limner generate`."""
    data = BytesIO()
    save_image(image, data, "PNG")
    return data.getvalue()
