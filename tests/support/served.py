"""A server of the images API in this process, and clients of it."""

from __future__ import annotations

import base64
import http.client
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import openai
from PIL import Image

from limner.apps.images_api.limits import Limits
from limner.apps.images_api.models import open_models
from limner.apps.images_api.server import ImagesServer

JSON = {"Content-Type": "application/json"}
WAIT = 120


@contextmanager
def serving(*words: object, key: str | None = None, **limits: Any) -> Iterator[ImagesServer]:
    def opened() -> Any:
        return open_models([str(word) for word in words], "cpu")

    with ImagesServer(opened, key=key, limits=Limits(**limits)) as server:
        yield server


def client_of(server: ImagesServer, key: str = "unused") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key=key, max_retries=0)


class Answer:
    def __init__(self, status: int, headers: http.client.HTTPMessage, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """Of an error, whose shape is the API's."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        return error["code"]

    def pictures(self) -> list[Image.Image]:
        assert self.status == 200, self.body
        return [decoded(one["b64_json"]) for one in self.json["data"]]


def ask(server: ImagesServer | int, path: str, asked: Any = None, **headers: str) -> Answer:
    """POST what is asked, or GET."""
    port = server if isinstance(server, int) else server.port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
    try:
        body = asked if isinstance(asked, bytes | None) else json.dumps(asked).encode()
        connection.request("GET" if asked is None else "POST", path, body, JSON | headers)
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


def draw(server: ImagesServer | int, **asked: Any) -> Answer:
    return ask(server, "/v1/images/generations", {"prompt": "a red circle", **asked})


def decoded(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def same(here: Image.Image, there: Image.Image) -> bool:
    apart = np.asarray(here, np.int16) - np.asarray(there, np.int16)
    return here.size == there.size and np.abs(apart).max() <= 1
