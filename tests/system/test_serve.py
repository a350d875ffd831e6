"""`limner serve`: what OpenAI's own client gets, and what happens when much or wrong is asked."""

import gc
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from made_up import made_up_checkpoint
from PIL import Image
from served import WAIT, ask, client_of, decoded, draw, same, serving

from limner import ImageGenerator
from limner.apps.images_api.queue import Drawing
from limner.apps.images_api.server import ImagesServer
from limner.cli import main
from limner.data.formats.entries import MOST_CHARACTERS
from limner.inference.saving import how_drawn

KEY = "a-key-of-a-test-0123"

Gate = Callable[[ImagesServer], "HeldBack"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, `shapes` and `larger`."""
    folder = tmp_path_factory.mktemp("made")
    made_up_checkpoint(folder / "shapes" / "checkpoint-3")
    made_up_checkpoint(folder / "larger" / "checkpoint-3", "data.image_size=24")
    return folder


@pytest.fixture(scope="module")
def server(made: Path) -> Iterator[ImagesServer]:
    with serving(made / "shapes", f"big={made / 'larger'}") as server:
        yield server


class HeldBack:
    """The generator of a server that waits at its first batch until it is let go."""

    def __init__(self, server: ImagesServer, patch: pytest.MonkeyPatch) -> None:
        self.begun, self.allowed, self.drawn = threading.Event(), threading.Event(), 0
        generator = server.api.models["shapes"].generator
        as_ever = generator.generate_batch

        def generate_batch(prompts: Any, **settings: Any) -> Any:
            self.begun.set()
            assert self.allowed.wait(WAIT)
            images = as_ever(prompts, **settings)
            self.drawn += len(images)
            return images

        patch.setattr(generator, "generate_batch", generate_batch)


@pytest.fixture
def held_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    held: list[HeldBack] = []

    def hold(server: ImagesServer) -> HeldBack:
        held.append(HeldBack(server, monkeypatch))
        return held[-1]

    yield hold
    for one in held:
        one.allowed.set()


def until(happened: Callable[[], object]) -> None:
    """Wait for something that other threads do."""
    for _ in range(WAIT * 100):
        if happened():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen")


# The official client


def test_openais_client_lists_models_and_draws(server: ImagesServer, made: Path) -> None:
    client = client_of(server)
    assert [model.id for model in client.models.list()] == ["shapes", "big"]
    assert client.models.retrieve("big").owned_by == "limner"
    found = client.images.generate(
        model="shapes",
        prompt="a red circle",
        n=2,
        size="16x32",
        user="somebody",
        extra_body={
            "seed": 7,
            "num_inference_steps": 3,
            "guidance_scale": 2.5,
            "negative_prompt": "blue",
        },
    )
    assert found.data is not None
    assert [one.seed for one in found.data] == [7, 8]  # type: ignore[attr-defined]
    images = [decoded(one.b64_json or "") for one in found.data]
    own = ImageGenerator(made / "shapes", device="cpu").generate_batch(
        ["a red circle"] * 2,
        num_inference_steps=3,
        guidance_scale=2.5,
        seeds=[7, 8],
        height=32,
        width=16,
        negative_prompt="blue",
    )
    assert all(map(same, images, own))
    assert how_drawn(images[1]) == how_drawn(own[1])
    assert not same(images[0], images[1])


def test_a_prompt_that_is_cut_is_told_to_its_client(server: ImagesServer) -> None:
    long = draw(server, model="shapes", prompt="large " * 50, n=2)
    assert len(long.pictures()) == 2
    (said,) = long.json["warnings"]
    assert said.endswith("tokens; the model read the first 24 and no more")
    assert "warnings" not in draw(server, model="shapes").json


def test_an_image_may_be_fetched_from_its_url(server: ImagesServer) -> None:
    client = client_of(server)
    found = client.images.generate(
        model="big", prompt="two 蓝色", response_format="url", size="auto", extra_body={"seed": 3}
    )
    assert found.data is not None
    assert found.data[0].b64_json is None
    url = str(found.data[0].url)
    assert url.startswith(f"{server.address}/images/")
    with urllib.request.urlopen(url, timeout=WAIT) as answer:
        assert answer.headers["Content-Type"] == "image/png"
        image = Image.open(io.BytesIO(answer.read()))
    (own,) = draw(server, model="big", prompt="two 蓝色", seed=3).pictures()
    assert image.size == (24, 24)
    assert same(image, own)
    other = ask(server, f"/images/{'a' * 32}.png")
    assert (other.status, other.code) == (404, "not_found")


def test_the_lines_of_the_guide_draw(
    server: ImagesServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")
    lines, edit = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    assert "http://127.0.0.1:8767/v1" in lines
    lines = lines.replace("http://127.0.0.1:8767", server.address)
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {}
    exec(lines.replace("generate(", 'generate(model="big", '), known)
    Image.new("L", (24, 24), 255).save("mask.png")
    exec(edit.replace("edit(", 'edit(model="big", '), known)
    assert decoded(known["answer"].data[0].b64_json).size == (24, 24)
    with Image.open("apple.png") as image:
        assert how_drawn(image)["prompt"] == "a red apple"
        assert how_drawn(image)["seed"] == 42
    (asked,) = re.findall(r"-d '(\{.*\})'", guide)
    answer = draw(server, model="big", **json.loads(asked))
    assert answer.json["data"][0]["url"].endswith(".png")


def test_what_is_wrong_comes_as_the_clients_own_errors(server: ImagesServer) -> None:
    images = client_of(server).images
    with pytest.raises(openai.BadRequestError) as bad:
        images.generate(model="shapes", prompt="a", n=11)
    assert (bad.value.param, bad.value.code) == ("n", "integer_above_max_value")
    with pytest.raises(openai.NotFoundError, match="served are shapes, big"):
        images.generate(model="gpt-image-2", prompt="a")
    with pytest.raises(openai.BadRequestError, match="served are shapes, big"):
        images.generate(prompt="a")
    with pytest.raises(openai.BadRequestError, match="trained at '16x16'"):
        images.generate(model="shapes", prompt="a", size="1024x1024")
    with pytest.raises(openai.NotFoundError, match="Unknown request URL"):
        images.create_variation(image=b"abc")


# Much at once


def test_two_hundred_requests_of_32_clients(made: Path) -> None:
    """Each is answered rightly, or refused as there are too many."""
    prompts = [f"{'red ' * (i % 4)}circle" for i in range(200)]
    generator = ImageGenerator(made / "shapes", device="cpu")
    own = generator.generate_batch(prompts, seeds=list(range(200)))
    process = psutil.Process()

    def request(number: int) -> int:
        answer = draw(server, prompt=prompts[number], seed=number)
        if answer.status == 429:
            assert answer.code == "rate_limit_exceeded"
            assert 1 <= int(answer.headers["Retry-After"]) <= 60
        else:
            (image,) = answer.pictures()
            assert same(image, own[number])
        return answer.status

    with serving(made / "shapes", queue=12) as server, ThreadPoolExecutor(32) as clients:
        statuses = list(clients.map(request, range(100)))
        gc.collect()
        before = process.memory_info().rss
        statuses += clients.map(request, range(100, 200))
        gc.collect()
        grown = process.memory_info().rss - before
        batches = server.api.counters.batches["shapes"]
        assert server.api.counters.requests == {s: statuses.count(s) for s in set(statuses)}
        until(lambda: not any(isinstance(one, Drawing) for one in gc.get_objects()))
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) >= 12
    assert batches < statuses.count(200), "none were drawn together"
    assert grown < 32 * 2**20


def test_a_full_queue_is_told_to_the_client(made: Path, held_back: Gate) -> None:
    with serving(made / "shapes", queue=10) as server, ThreadPoolExecutor(2) as clients:
        held = held_back(server)
        first = clients.submit(draw, server)
        assert held.begun.wait(WAIT)
        waiting = clients.submit(draw, server, n=10, seed=5)
        until(lambda: "limner_queue_length 10" in ask(server, "/metrics").body.decode())
        with pytest.raises(openai.RateLimitError) as refused:
            client_of(server).images.generate(prompt="a")
        assert int(refused.value.response.headers["Retry-After"]) >= 1
        held.allowed.set()
        assert len(first.result().pictures()) == 1
        assert len(waiting.result().pictures()) == 10


def test_nothing_is_computed_for_what_is_beyond_the_limits(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(made / "shapes") as server:
        generator = server.api.models["shapes"].generator
        monkeypatch.setattr(generator, "generate_batch", None)
        for asked, param in (
            ({"n": 10**9}, "n"),
            ({"prompt": "a" * (MOST_CHARACTERS + 1)}, "prompt"),
            ({"negative_prompt": "a" * (MOST_CHARACTERS + 1)}, "negative_prompt"),
            ({"size": "99996x99996"}, "size"),
            ({"size": "36x32"}, "size"),
            ({"size": "15x16"}, "size"),
            ({"num_inference_steps": 251}, "num_inference_steps"),
            ({"guidance_scale": -1}, "guidance_scale"),
            ({"seed": 2**63}, "seed"),
        ):
            answer = draw(server, **asked)
            assert (answer.status, answer.json["error"]["param"]) == (400, param)
            assert answer.code
        huge = ask(server, "/v1/images/generations", b'{"prompt": "' + b"a" * 2**21)
        assert (huge.status, huge.code) == (413, "too_large")
        text = ask(server, "/v1/images/generations", b"{}", **{"Content-Type": "text/plain"})
        assert text.status == 415, "a page of a stranger could send it"


def test_a_request_that_takes_too_long_is_given_up(made: Path, held_back: Gate) -> None:
    with serving(made / "shapes", timeout=0.2) as server:
        held = held_back(server)
        answer = draw(server)
        assert (answer.status, answer.code) == (504, "timeout")
        assert answer.headers["x-should-retry"] == "false"
        assert held.begun.is_set()
        held.allowed.set()
    assert held.drawn == 0, "drawn for nobody"


def test_a_client_that_has_gone_is_drawn_nothing(made: Path, held_back: Gate) -> None:
    with serving(made / "shapes", batch_size=1) as server:
        held = held_back(server)
        body = b'{"prompt": "a red circle"}'
        head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        clients = []
        for _ in range(2):  # one that is drawn, and one that waits
            client = socket.create_connection(("127.0.0.1", server.port), WAIT)
            client.sendall(f"POST /v1/images/generations HTTP/1.1\r\n{head}\r\n\r\n".encode())
            client.sendall(body)
            clients.append(client)
            assert held.begun.wait(WAIT)
        until(lambda: server.api.workers["shapes"].length() == 1)
        for client in clients:
            client.close()
        until(lambda: server.api.counters.requests[499] == 2)
        assert server.api.workers["shapes"].length() == 0
        held.allowed.set()
        assert draw(server).status == 200
    assert held.drawn == 1


# Who may ask


def test_a_key_is_asked_for(made: Path) -> None:
    with serving(made / "shapes", key=KEY) as server:
        with pytest.raises(openai.AuthenticationError) as refused:
            client_of(server, "another-key-01234567").models.list()
        assert refused.value.code == "invalid_api_key"
        assert "another-key" not in str(refused.value)
        for path in ("/v1/models", "/metrics"):
            assert ask(server, path).status == 401
        assert draw(server).status == 401
        assert ask(server, "/health").json == {"status": "ok"}
        client = client_of(server, KEY)
        found = client.images.generate(prompt="a red circle", response_format="url")
        assert found.data is not None
        with urllib.request.urlopen(str(found.data[0].url), timeout=WAIT) as image:
            assert image.read(4) == b"\x89PNG"


def test_without_a_key_only_this_machine_is_meant(server: ImagesServer) -> None:
    for path in ("/v1/models", "/health", "/metrics", "/images/a.png"):
        answer = ask(server, path, Host="evil.example")
        assert (answer.status, answer.code) == (403, "invalid_host")
    answer = ask(server, "/v1/models", Origin="https://evil.example")
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_no_address_of_other_machines_without_a_key(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LIMNER_API_KEY", raising=False)
    assert main(["serve", str(made / "shapes"), "--host", "0.0.0.0"]) == 2
    assert "without an API key anyone could draw" in capsys.readouterr().err


# Beginning and end


def test_a_damaged_checkpoint_is_told_before_anything_is_served(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(made / "shapes" / "checkpoint-3", tmp_path / "damaged")
    weights = next(iter(copy.glob("ema.safetensors")))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    words = ["serve", str(made / "shapes"), str(copy), "--port", "0", "--device", "cpu"]
    assert main(words) == 2
    said = capsys.readouterr()
    assert "ema.safetensors" in said.err
    assert "Serving" not in said.out


def test_a_missing_package_is_named_with_its_extra(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(made / "shapes")]) == 2
    assert 'pip install "limner[serve]"' in capsys.readouterr().err


def test_a_distilled_model_says_why_it_is_not_guided(tmp_path: Path) -> None:
    made_up_checkpoint(
        tmp_path / "fast" / "checkpoint-3", "model.flow_map=true", "sampling.guidance_scale=1"
    )
    with serving(tmp_path / "fast") as server:
        assert len(draw(server, num_inference_steps=1).pictures()) == 1
        for asked in ({"negative_prompt": "blue"}, {"guidance_scale": 3}):
            answer = draw(server, **asked)
            assert answer.status == 400
            assert "distilled model" in answer.json["error"]["message"]


@contextmanager
def started(checkpoint: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`limner serve` as a process of its own, and its port."""
    program = (  # pytest may run where Ctrl-C is ignored
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from limner.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    given = ["serve", str(checkpoint), "--port", "0", "--device", "cpu", *words]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *given],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"at http://127\.0\.0\.1:(\d+)/v1", line)
        assert found, line + process.stdout.read()
        yield process, int(found[1])
    finally:
        process.kill()
        process.communicate()


def images_drawn(port: int) -> int:
    found = re.search(r"limner_images_total\{.*\} (\d+)", ask(port, "/metrics").body.decode())
    return int(found[1]) if found else 0


def begin_to_draw(clients: ThreadPoolExecutor, port: int) -> Any:
    """A request of ten images that takes a while, two at once, of which the first two are drawn."""
    future = clients.submit(draw, port, n=10, num_inference_steps=250)
    until(lambda: future.done() or images_drawn(port) >= 2)
    return future


@pytest.mark.skipif(os.name == "nt", reason="Windows sends other signals")
def test_sigterm_finishes_what_is_being_drawn(made: Path) -> None:
    with (
        ThreadPoolExecutor(1) as clients,
        started(made / "shapes", "--batch_size", "2") as (process, port),
    ):
        drawing = begin_to_draw(clients, port)
        process.send_signal(signal.SIGTERM)
        # Refused for either reason, so that it never waits to be drawn.
        until(lambda: draw(port, n=0).status == 503)
        until(lambda: images_drawn(port) >= 4)
        refused = draw(port)
        assert (refused.status, refused.code) == (503, "server_stopping")
        assert ask(port, "/health").status == 503
        assert len(drawing.result(WAIT).pictures()) == 10
        assert process.wait(WAIT) == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows sends other signals")
def test_a_second_ctrl_c_ends_at_once(made: Path) -> None:
    with (
        ThreadPoolExecutor(1) as clients,
        started(made / "shapes", "--batch_size", "2") as (process, port),
    ):
        drawing = begin_to_draw(clients, port)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Finishing what is being drawn")
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT) == 130
        with pytest.raises((OSError, http.client.HTTPException)):
            drawing.result(WAIT)
