"""`limner play`: the page to draw with, and who may ask it."""

import base64
import http.client
import io
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Page, browser_or_skip, open_browser
from made_up import made_up_checkpoint, made_up_in_latents
from PIL import Image
from visitor import visit_pages

from limner import ImageGenerator
from limner.apps.play.painter import Painter
from limner.apps.play.request import DrawRequest
from limner.apps.play.server import Server
from limner.cli import main
from limner.errors import LimnerError
from limner.inference.saving import how_drawn

Ask = Callable[..., tuple[int, Any]]
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "shapes"
    made_up_checkpoint(folder / "checkpoint-3")
    return folder


@contextmanager
def serving(checkpoint: Path, keep_in: Path | None = None) -> Iterator[Server]:
    with Server(Painter(checkpoint, keep_in, device="cpu"), 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(run: Path, tmp_path: Path) -> Iterator[Server]:
    copy = shutil.copytree(run, tmp_path / "shapes")
    with serving(copy, tmp_path / "kept") as server:
        yield server


@pytest.fixture
def ask(server: Server) -> Ask:
    def ask(path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
        token = {"Authorization": f"Bearer {server.access.token}"}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is None:
            connection.request("GET", path, headers=token | named)
        else:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request("POST", path, content, JSON | token | named)
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.headers.get_content_type() == "application/x-ndjson":
            return answer.status, [json.loads(line) for line in text.splitlines()]
        if answer.headers.get_content_type() == "application/json":
            return answer.status, json.loads(text)
        return answer.status, text

    return ask


def images(events: list[dict[str, Any]]) -> list[Image.Image]:
    found = [event for event in events if event["kind"] == "picture"]
    assert [event["number"] for event in found] == list(range(len(found)))
    return [Image.open(io.BytesIO(base64.b64decode(event["png"]))) for event in found]


# What is drawn


def test_it_draws_what_generate_draws_and_tells_of_every_step(ask: Ask, run: Path) -> None:
    asked = {"prompts": ["a red circle", "两个"], "num_images": 2, "seed": 7, "guidance_scale": 2.0}
    status, events = ask("/draw", asked | {"num_inference_steps": 3, "scheduler_type": "euler"})
    assert status == 200
    steps = [(e["step"], e["steps"], e["first"], e["count"]) for e in events if "step" in e]
    assert steps == [(1, 3, 0, 4), (2, 3, 0, 4), (3, 3, 0, 4)]
    assert events[-1] == {"kind": "done"}
    own = ImageGenerator(run, "euler", device="cpu").generate_batch(
        ["a red circle", "a red circle", "两个", "两个"],
        num_inference_steps=3,
        guidance_scale=2.0,
        seeds=[7, 8, 7, 8],
    )
    for here, there in zip(images(events), own, strict=True):
        assert np.array_equal(here, there)
        assert how_drawn(here) == how_drawn(there)
    preview = Image.open(io.BytesIO(base64.b64decode(events[2]["previews"][3])))
    grey = [np.array(image.convert("L")).ravel() for image in (preview, own[3])]
    assert np.corrcoef(*grey)[0, 1] > 0.9


def test_a_picture_says_how_it_is_drawn_again(ask: Ask, run: Path) -> None:
    _, events = ask("/draw", {"prompts": ["a circle"], "seed": 5, "negative_prompt": "blue"})
    (image,) = images(events)
    how = how_drawn(image)
    assert (how["prompt"], how["seed"], how["negative_prompt"]) == ("a circle", 5, "blue")
    assert how["model_step"] == 3
    again = ImageGenerator(run, device="cpu").generate_batch(
        [how["prompt"]], seeds=[how["seed"]], negative_prompt="blue", **how["sampling"]
    )
    assert np.array_equal(again[0], image)


def test_many_are_drawn_in_batches_and_kept(ask: Ask, server: Server, tmp_path: Path) -> None:
    generator = server.painter.generator
    generator.at_once = lambda most, height, width: 2  # type: ignore[method-assign]
    _, events = ask("/draw", {"prompts": ["a/b: c?"], "num_images": 5})
    assert [e["first"] for e in events if e.get("step") == 1] == [0, 2, 4]
    order = [e["kind"] for e in events if e["kind"] != "progress"]
    assert order == ["picture"] * 5 + ["done"]
    assert events.index(next(e for e in events if e["kind"] == "picture")) < len(events) - 5, (
        "the first are shown before the last are begun"
    )
    ask("/draw", {"prompts": ["a/b: c?"]})
    names = {path.name for path in (tmp_path / "kept").iterdir()}
    assert names == {*(f"a-b-c-{seed}.png" for seed in range(5)), "a-b-c-0-2.png"}
    kept = Image.open(tmp_path / "kept" / "a-b-c-3.png")
    assert np.array_equal(kept, images(events)[3])
    assert how_drawn(kept)["seed"] == 3


def test_a_start_picture_is_a_start(ask: Ask) -> None:
    data = io.BytesIO()
    Image.new("RGB", (40, 20), "red").save(data, "PNG")
    start = base64.b64encode(data.getvalue()).decode()
    _, events = ask("/draw", {"prompts": ["x"], "init_image": start, "strength": 0.0})
    assert np.array(images(events)[0]).reshape(-1, 3).tolist() == [[255, 0, 0]] * 256
    _, events = ask("/draw", {"prompts": ["x"], "init_image": "no base64!"})
    assert events == [{"kind": "error", "message": "init_image is not valid base64"}]


def test_in_latents_it_draws_without_decoding_every_step(tmp_path: Path) -> None:
    folder = made_up_in_latents(tmp_path / "checkpoint", tmp_path / "parts")
    painter = Painter(folder, device="cpu")
    events: list[dict[str, Any]] = []
    painter.draw(DrawRequest(prompts=("a circle",), seed=3), events.append)
    assert [set(e) - {"kind"} for e in events[:-1]] == [{"first", "count", "step", "steps"}] * 2
    own = ImageGenerator(folder, device="cpu").generate("a circle", seed=3)
    assert np.array_equal(images(events)[0], own)
    assert painter.about()["unit"] == 2 * painter.generator.autoencoder.downsampling


# The model


def test_it_says_what_it_draws_from(ask: Ask, server: Server) -> None:
    status, about = ask("/model")
    assert status == 200
    assert (about["name"], about["step"], about["newer"]) == ("shapes", 3, None)
    assert (about["size"], about["unit"], about["shapes"]) == (16, 4, [[16, 16]])
    assert about["distilled"] is False
    assert about["examples"] == ["a red circle"]
    assert about["sampling"]["num_inference_steps"] == 2
    assert about["keeps"] == str(server.painter.keep_in)


def test_a_newer_checkpoint_is_noticed_and_taken(
    ask: Ask, server: Server, run: Path, tmp_path: Path
) -> None:
    unfinished = tmp_path / "shapes" / "checkpoint-9"
    unfinished.mkdir()
    assert ask("/model")[1]["newer"] is None
    unfinished.rmdir()
    newer = shutil.copytree(run / "checkpoint-3", tmp_path / "shapes" / "checkpoint-4")
    assert ask("/model")[1]["newer"] == 4
    before = server.painter.generator
    assert ask("/newest", {})[0] == 200
    assert server.painter.generator is not before
    for path in newer.iterdir():
        path.unlink()
    shutil.rmtree(tmp_path / "shapes" / "checkpoint-3")
    status, said = ask("/newest", {})
    assert status == 409
    assert "checkpoint" in said["message"]
    assert ask("/draw", {"prompts": ["x"]})[1][-1] == {"kind": "done"}, "it draws as before"


# The page


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with open_browser(browser_or_skip(), tmp_path_factory.mktemp("profile")) as page:
        yield page


OUTSIDE = """
[...document.querySelectorAll("header *, main *")].filter(element => {
  const box = element.getBoundingClientRect();
  return box.width && (box.right > innerWidth + 1 || box.left < -1);
}).map(element => element.outerHTML.slice(0, 120))
"""
DONE = """
new Promise(done => {
  const look = () => stopping ? setTimeout(look, 20) : done([
    document.querySelectorAll("figure").length,
    document.querySelectorAll("progress").length,
    $("error").hidden ? "" : $("error").textContent,
    $("status").textContent,
  ]);
  look();
})
"""
OPENED = (
    "new Promise(go => { const look = () => model ? go(true) : setTimeout(look, 20); look(); })"
)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_one_draws_on_the_page(browser: Page, server: Server, width: int, dark: bool) -> None:
    browser.go(server.address, width, dark)
    browser.ask(OPENED)
    assert browser.ask("document.title") == "shapes"
    browser.ask("$('prompt').value = 'a red circle\\n  two squares  \\n'; $('count').value = 2")
    browser.ask("$('fresh').checked = false; $('seed').value = 7; $('draw').click()")
    figures, unfinished, error, status = browser.ask(DONE)
    assert (figures, unfinished, error) == (4, 0, "")
    assert status.startswith("4 images in")
    alts = browser.ask("[...document.images].filter(i => i.naturalWidth).map(i => i.alt)")
    assert alts == ["a red circle", "a red circle", "two squares", "two squares"]
    saved = browser.ask("[...document.querySelectorAll('.actions a')].map(a => a.download)")
    assert saved == [
        *("a-red-circle-7.png", "a-red-circle-8.png"),
        *("two-squares-7.png", "two-squares-8.png"),
    ]
    assert browser.ask(OUTSIDE) == []
    assert browser.complaints() == []
    origin = server.address.partition("?")[0]
    assert all(url.startswith((origin, "blob:")) for url in browser.requests())

    # The same again is the same; a variation starts from it.
    source = "document.querySelector('figure img').src"
    before = browser.ask("document.querySelectorAll('figure img')[1].src")
    browser.ask("document.querySelectorAll('figure')[1].querySelectorAll('button')[0].click()")
    browser.ask("$('draw').click()")
    assert browser.ask(DONE)[0] == 5
    assert browser.ask(source) == before
    browser.ask("document.querySelector('figure').querySelectorAll('button')[1].click()")
    assert browser.ask("$('start').hidden") is False
    browser.ask("$('strength').value = 0; $('draw').click()")
    assert browser.ask(DONE)[:3] == [6, 0, ""]
    pixels = browser.ask(f"{source}.length > 100") and [
        np.array(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
        for url in (browser.ask(source), before)
    ]
    assert np.abs(pixels[0].astype(int) - pixels[1]).max() <= 1


def test_the_page_speaks_chinese_and_remembers_it(browser: Page, server: Server) -> None:
    browser.go(server.address, 390, False)
    browser.ask(OPENED)
    browser.ask("localStorage.clear()")
    english = browser.ask("document.body.innerText")
    browser.ask("$('language').click()")
    chinese = browser.ask("document.body.innerText")
    browser.go(server.address, 390, False)
    browser.ask(OPENED)
    assert browser.ask("document.documentElement.lang") == "zh-CN"
    assert browser.ask("document.body.innerText") == chinese
    assert ("Generate" in english, "生成" in chinese, "Generate" in chinese) == (True, True, False)
    known = browser.ask("[Object.keys(WORDS.en), Object.keys(WORDS.zh)].map(k => k.join())")
    assert known[0] == known[1]
    assert browser.ask(OUTSIDE) == []
    browser.ask("$('language').click()")


def test_a_drawing_is_stopped_on_the_page(browser: Page, server: Server) -> None:
    browser.go(server.address, 1280, False)
    browser.ask(OPENED)
    browser.ask("$('steps').value = 1000; $('count').value = 64; $('draw').click()")
    browser.ask("""
    new Promise(go => {
      const look = () => document.querySelector("figure img") ? go(true) : setTimeout(look, 20);
      look();
    })
    """)
    browser.ask("$('stop').click()")
    figures, _, error, status = browser.ask(DONE)
    assert (figures, error, status) == (0, "", "Stopped.")
    browser.ask("$('steps').value = 2; $('count').value = 1; $('draw').click()")
    assert browser.ask(DONE)[:3] == [1, 0, ""]


def test_what_goes_wrong_is_told_on_the_page(browser: Page, server: Server) -> None:
    browser.go(server.address, 1280, False)
    browser.ask(OPENED)
    server.painter.generator.at_once = lambda *_: 0  # type: ignore[method-assign]
    browser.ask("$('draw').click()")
    figures, _, error, _ = browser.ask(DONE)
    assert (figures, "ValueError" in error) == (0, True)
    assert browser.ask("$('empty').hidden") is False
    browser.ask("$('width').value = 17; $('draw').click()")
    assert browser.ask("stopping") is None
    assert browser.ask("$('more').open") is True


# The command


def test_the_command_opens_the_page_and_ends_with_ctrl_c(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = visit_pages(monkeypatch, tmp_path / "page.html")
    assert main(["play", str(run), "--port", "0", "--device", "cpu"]) == 0
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "<title>Limner</title>" in page
    assert "NONCE" not in page
    assert "://" not in page, "it needs nothing from elsewhere"
    assert f"Draw at {opened[0]} (press Ctrl-C to stop)" in capsys.readouterr().out
    assert "?token=" in opened[0]
    assert main(["play", str(run), "--port", "0", "--device", "cpu", "--no-browser"]) == 0
    assert len(opened) == 1


def test_what_cannot_be_played_is_told_before_anything_is_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["play", str(tmp_path), "--no-browser"]) == 2
    assert str(tmp_path) in capsys.readouterr().err


# Who may ask, and for what


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),  # a name that was pointed here
        ({"Host": "evil.example:8765"}, 403),
        ({"Host": "localhost"}, 200),
        ({"Host": "localhost:9999"}, 200),  # through a tunnel
        ({"Host": "[::1]:8765"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:2"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
    ],
)
def test_only_its_own_page_is_answered(ask: Ask, headers: dict[str, str], status: int) -> None:
    assert ask("/model", **headers)[0] == status
    found, answer = ask("/draw", {"prompts": ["x"]}, **headers)
    assert found == status
    assert ("message" in answer) == (status != 200)


def test_a_request_that_a_form_could_send_is_refused(ask: Ask) -> None:
    assert ask("/draw", {"prompts": ["x"]}, Content_Type="text/plain")[0] == 415
    assert ask("/draw", b"{no json")[0] == 400
    assert ask("/draw", b"", Content_Length=str(2**40))[0] == 413
    assert ask("/../etc/passwd")[0] == 404
    assert ask("/else", {})[0] == 404


def test_it_listens_on_loopback_alone(server: Server, run: Path) -> None:
    assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(LimnerError, match=r"--port .* is in use by another program"):
        Server(server.painter, server.server_port)
    with pytest.raises(LimnerError, match="--port 99999 cannot be used"):
        Server(server.painter, 99999)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"prompts": []}, "prompts"),
        ({"prompts": ["x"] * 65}, "prompts"),
        ({"prompts": ["x", "y"], "num_images": 33}, "exceed the limit of 64 images"),
        ({"prompts": ["x"], "num_images": 0}, "num_images"),
        ({"prompts": ["x"], "seed": -1}, "seed"),
        ({"prompts": ["x"], "strength": 2}, "strength"),
        ({"prompts": ["x"], "checkpoint": "/etc"}, "checkpoint"),
        ({"prompts": ["x"], "width": 10**9}, "width"),
        ({"prompts": ["x"], "width": 17}, "not a multiple of 4"),
        ({"prompts": ["x"], "scheduler_type": "magic"}, "magic"),
        ({"prompts": ["x"], "strength": 0.5}, "init_image"),
        ([], "dict"),
    ],
)
def test_what_cannot_be_drawn_is_told(ask: Ask, asked: Any, said: str) -> None:
    status, events = ask("/draw", asked)
    assert status == 200
    (event,) = events
    assert event["kind"] == "error"
    assert said in event["message"]


def test_what_breaks_is_told_and_the_next_is_drawn(
    ask: Ask, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory\nand more")

    with monkeypatch.context() as broken:
        broken.setattr(server.painter.generator, "generate_batch", fail)
        _, events = ask("/draw", {"prompts": ["x"]})
        assert events == [{"kind": "error", "message": "RuntimeError: out of memory"}]
    assert ask("/draw", {"prompts": ["x"]})[1][-1] == {"kind": "done"}


def test_who_leaves_ends_the_drawing_and_who_waits_is_next(run: Path) -> None:
    painter = Painter(run, device="cpu")
    told: list[dict[str, Any]] = []
    waits, next_told = threading.Event(), list[dict[str, Any]]()

    def second() -> None:
        def tell(event: dict[str, Any]) -> None:
            next_told.append(event)
            if event["kind"] == "waiting":
                waits.set()

        painter.draw(DrawRequest(prompts=("y",)), tell)

    thread = threading.Thread(target=second)

    def leave(event: dict[str, Any]) -> None:
        told.append(event)
        if event["step"] == 1:
            thread.start()
            assert waits.wait(60)
        else:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        painter.draw(DrawRequest(prompts=("x",), num_inference_steps=50), leave)
    assert [event["step"] for event in told] == [1, 2]
    thread.join(60)
    assert [e["kind"] for e in next_told] == ["waiting", "progress", "progress", "picture"]
