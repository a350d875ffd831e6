"""`POST /v1/images/edits` of `limner serve`: a picture changed, or drawn anew within a mask."""

import io
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from made_up import made_up_checkpoint
from PIL import Image
from served import Answer, ask, client_of, decoded, same, serving

from limner import ImageGenerator
from limner.apps.images_api.limits import MOST_FORM_BYTES
from limner.apps.images_api.server import ImagesServer

EDITS = "/v1/images/edits"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up_checkpoint(tmp_path_factory.mktemp("made") / "shapes" / "checkpoint-3")


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[ImagesServer]:
    with serving(checkpoint.parent) as server:
        yield server


def as_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.linear_gradient("L").resize((16, 16)).convert("RGB")


@pytest.fixture(scope="module")
def hole(picture: Image.Image) -> Image.Image:
    """The picture, whose right half is transparent: a mask as OpenAI's clients send it."""
    opacity = np.full((16, 16), 255, dtype=np.uint8)
    opacity[:, 8:] = 0
    image = picture.convert("RGBA")
    image.putalpha(Image.fromarray(opacity))
    return image


def post(
    server: ImagesServer,
    files: dict[str, bytes],
    fields: dict[str, str] | None = None,
    **headers: str,
) -> Answer:
    """A form."""
    parts = {"prompt": b"a red circle"} | {k: v.encode() for k, v in (fields or {}).items()}
    lines = [
        b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value)
        for name, value in parts.items()
    ] + [
        b'--x\r\nContent-Disposition: form-data; name="%s"; filename="a.png"\r\n'
        b"Content-Type: image/png\r\n\r\n%s\r\n" % (name.encode(), value)
        for name, value in files.items()
    ]
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    return ask(server, EDITS, b"".join([*lines, b"--x--\r\n"]), **(kind | headers))


def test_openais_client_edits_as_generate_does(
    server: ImagesServer, checkpoint: Path, picture: Image.Image, hole: Image.Image
) -> None:
    generator = ImageGenerator(checkpoint, device="cpu")
    client = client_of(server)
    image, mask = (("a.png", as_png(one), "image/png") for one in (picture, hole))
    answer = client.images.edit(
        image=image, mask=mask, prompt="a red circle", n=2, extra_body={"seed": 4}
    )
    for number, one in enumerate(answer.data or []):
        drawn = decoded(one.b64_json or "")
        how = {"init_image": picture, "mask": hole, "seed": 4 + number}
        assert same(drawn, generator.generate("a red circle", **how))
        left = (0, 0, 8, 16)
        assert np.array_equal(np.asarray(drawn.crop(left)), np.asarray(picture.crop(left)))
    more = {"seed": 4, "strength": 0.3, "guidance_scale": 2.0}
    answer = client.images.edit(image=[image], prompt="a red circle", extra_body=more)
    expected = generator.generate("a red circle", init_image=picture, **more)
    assert same(decoded((answer.data or [])[0].b64_json or ""), expected)


def test_edits_of_several_clients_are_told_apart(
    server: ImagesServer, checkpoint: Path, picture: Image.Image
) -> None:
    """Images of one batch start from one picture: others wait for the next."""
    generator = ImageGenerator(checkpoint, device="cpu")
    other = Image.new("RGB", (16, 16), "blue")
    for image in (picture, other):
        (drawn,) = post(server, {"image": as_png(image)}, {"seed": "1"}).pictures()
        expected = generator.generate("a red circle", init_image=image, seed=1)
        assert same(drawn, expected)


@pytest.mark.parametrize(
    ("files", "fields", "param", "said"),
    [
        ({"mask": b"x"}, {}, "image", "Missing required parameter: 'image'"),
        ({"image": b"no picture"}, {}, "image", "the picture"),
        ({"image": "png", "mask": b"x"}, {}, "mask", "the picture"),
        ({"image": "png", "mask": "small"}, {}, "mask", "must have the same size"),
        ({"image": "png", "mask": "black"}, {}, "mask", "keeps the whole picture"),
        ({"image": "png", "other": "png"}, {}, "other", "one file 'image'"),
        ({"image": "png"}, {"strength": "2"}, "strength", "less than or equal to 1"),
        ({"image": "png"}, {"n": "many"}, "n", "valid integer"),
        ({"image": "png"}, {"stream": "true"}, "stream", "Input should be False"),
        ({"image": "png"}, {"image": "text"}, "image", "one file 'image'"),
        ({"image": "png"}, {"fringe": "1"}, "fringe", "Unknown parameter: 'fringe'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_its_field(
    files: dict[str, Any],
    fields: dict[str, str],
    param: str,
    said: str,
    server: ImagesServer,
    picture: Image.Image,
) -> None:
    made = {
        "png": as_png(picture),
        "small": as_png(picture.resize((8, 8))),
        "black": as_png(Image.new("L", (16, 16))),
    }
    sent = {
        name: made.get(one, one) if isinstance(one, str) else one for name, one in files.items()
    }
    answer = post(server, sent, fields)
    assert answer.status == 400
    error = answer.json["error"]
    assert error["param"] == param
    assert said in error["message"]


def test_forms_that_are_none_and_pages_of_strangers(
    server: ImagesServer, picture: Image.Image
) -> None:
    assert ask(server, EDITS, {"prompt": "a"}).status == 415
    nothing = ask(server, EDITS, b"nothing of a form", **{"Content-Type": "multipart/form-data"})
    assert (nothing.status, nothing.code) == (400, "invalid_form")
    large = post(server, {"image": b"\0" * (MOST_FORM_BYTES + 1)})
    assert (large.status, large.code) == (413, "too_large")
    stranger = post(server, {"image": as_png(picture)}, Origin="https://evil.example")
    assert (stranger.status, stranger.code) == (403, "invalid_origin")
    assert post(server, {"image": as_png(picture)}, Origin=server.address).status == 200


def test_a_client_that_sends_half_a_form_and_goes(server: ImagesServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(
            b"POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
        )
    with pytest.raises(openai.BadRequestError):
        client_of(server).images.edit(image=("a.png", b""), prompt="a")
