"""`limner watch`: the page of runs, in a browser and without one."""

import base64
import http.client
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Page, browser_or_skip, open_browser
from made_up import made_up_checkpoint
from made_up_run import HOSTILE, made_up_run
from PIL import Image
from visitor import visit_pages

from limner import ImageGenerator
from limner.apps.serving.server import NO_TOKEN
from limner.apps.watch.explain import Explainer, ExplainRequest
from limner.apps.watch.server import Server
from limner.cli import main
from limner.config import Config
from limner.errors import LimnerError
from limner.inference.contact_sheet import contact_sheet
from limner.inference.saving import how_drawn
from limner.training.trainer import Trainer

Ask = Callable[..., tuple[int, Any]]


@contextmanager
def serving(**folders: Path) -> Iterator[Server]:
    with Server(folders, Explainer(device="cpu"), 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a checkpoint."""
    folder = tmp_path_factory.mktemp("made") / "run"
    folder.mkdir()
    made_up_checkpoint(made_up_run(folder) / "checkpoint-3")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(run=folder) as server:
        yield server


@pytest.fixture
def ask(server: Server) -> Ask:
    def ask(path: str, body: Any = None, token: bool = True) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
        headers = {"Authorization": f"Bearer {server.access.token}"} if token else {}
        if body is None:
            connection.request("GET", path, headers=headers)
        else:
            headers["Content-Type"] = "application/json"
            connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        data = answer.read()
        if answer.headers.get_content_type() == "application/x-ndjson":
            return answer.status, [json.loads(line) for line in data.decode().splitlines()]
        if answer.headers.get_content_type() == "application/json" and data:
            return answer.status, json.loads(data)
        return answer.status, data

    return ask


def fetched(server: Server, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request("GET", path, headers={"Authorization": f"Bearer {server.access.token}"})
    return connection.getresponse().read()


# What is answered


def test_runs_and_a_run_are_told_and_the_same_is_not_told_twice(ask: Ask) -> None:
    status, (run,) = ask("/runs")
    assert status == 200
    assert (run["name"], run["status"], run["step"]) == ("run", "stopped", 1000)
    status, said = ask("/run?run=run")
    assert status == 200
    assert said["version"] == run["version"]
    assert len(said["previews"]) == 21
    assert ask(f"/run?run=run&version={said['version']}") == (204, b"")


def test_a_run_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    bad, odd = made_up_run(tmp_path / "bad"), made_up_run(tmp_path / "odd")
    (bad / "config.yaml").write_text("a: [1,", "utf-8")
    (odd / "config.yaml").write_text("data: {x: .nan, y: 2026-11-30}\n1: {2: .inf}\n", "utf-8")
    with serving(good=made_up_run(tmp_path / "good"), bad=bad, odd=odd) as server:

        def get(path: str) -> Any:
            return json.loads(fetched(server, path), parse_constant=pytest.fail)

        assert [run["status"] for run in get("/runs")] == ["stopped", "stopped", "unreadable"]
        assert "config.yaml" in get("/run?run=bad")["message"]
        assert get("/run?run=odd")["settings"]["data.y"] == "2026-11-30"


def test_previews_and_their_film_are_images(ask: Ask, folder: Path) -> None:
    status, data = ask("/preview?run=run&step=50")
    assert status == 200
    assert data == (folder / "previews" / "step-000050.png").read_bytes()
    status, data = ask("/film?run=run")
    assert status == 200
    assert Image.open(io.BytesIO(data)).format == "WEBP"


def test_a_preview_is_narrowed_for_a_narrow_screen(ask: Ask, folder: Path, tmp_path: Path) -> None:
    whole = folder / "previews" / "step-000050.png"
    assert ask("/preview?run=run&step=50&columns=3")[1] == whole.read_bytes(), "it is no sheet"
    shots = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(8)]
    run = made_up_run(tmp_path / "run")
    contact_sheet(shots, [""] * 8).save(run / "previews" / "step-000050.png")
    (run / "previews" / "step-000100.png").write_bytes(b"no image")
    with serving(run=run) as server:
        sizes = [
            Image.open(io.BytesIO(fetched(server, f"/preview?run=run&step=50{more}"))).size
            for more in ("", "&columns=3", "&columns=0", "&columns=x")
        ]
        assert fetched(server, "/preview?run=run&step=100&columns=3") == b"no image"
    assert sizes[0] == sizes[2] == sizes[3]
    assert sizes[1][0] < sizes[0][0] / 2
    assert sizes[1][1] > sizes[0][1] * 2


@pytest.mark.parametrize(
    "path",
    ["/run", "/run?run=other", "/preview?run=run&step=51", "/preview?run=run&step=../config",
     "/preview?run=../run&step=50", "/film?run=", "/config.yaml"],
)  # fmt: skip
def test_nothing_else_is_answered(ask: Ask, path: str) -> None:
    assert ask(path)[0] == 404


@pytest.mark.parametrize("path", ["/", "/runs", "/run?run=run", "/preview?run=run&step=50"])
def test_nobody_else_is_answered(ask: Ask, path: str) -> None:
    status, said = ask(path, token=False)
    assert status == 403
    why = NO_TOKEN.format(command="watch")
    assert said == (f"Limner: {why}\n".encode() if path == "/" else {"message": why})


def test_a_drawing_is_explained_step_by_step_and_word_by_word(ask: Ask, folder: Path) -> None:
    asked = {"run": "run", "prompt": "a small red circle", "seed": 5, "num_inference_steps": 3}
    status, events = ask("/explain", asked)
    assert status == 200
    steps = [(e["step"], e["steps"]) for e in events if e["kind"] == "progress"]
    assert steps == [(1, 3), (2, 3), (3, 3)]
    picture = next(e for e in events if e["kind"] == "picture")
    own = ImageGenerator(folder, device="cpu").generate(
        "a small red circle", seed=5, num_inference_steps=3
    )
    drawn = Image.open(io.BytesIO(base64.b64decode(picture["png"])))
    assert np.array_equal(drawn, own)
    assert picture["how"]["prompt"] == how_drawn(own)["prompt"]
    assert [word["text"] for word in picture["words"]] == ["a", "small", "red", "circle"]
    assert sum(word["share"] for word in picture["words"]) == pytest.approx(1)
    for word in picture["words"]:
        assert Image.open(io.BytesIO(base64.b64decode(word["image"]))).size == own.size
        assert word["least"] <= 1 <= word["most"]
    assert Image.open(io.BytesIO(base64.b64decode(picture["scale"]))).width > 100
    assert events[-1] == {"kind": "done"}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"run": "run", "prompt": "x", "seed": -1}, "seed"),
        ({"run": "other", "prompt": "x"}, "no run is called other"),
        ({"run": "run", "prompt": "x", "checkpoint": "/etc"}, "checkpoint"),
        ([], "dict"),
    ],
)
def test_what_cannot_be_drawn_is_told(ask: Ask, asked: Any, said: str) -> None:
    (event,) = ask("/explain", asked)[1]
    assert event["kind"] == "error"
    assert said in event["message"]


def explained(explainer: Explainer, folder: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    explainer.explain(ExplainRequest(run="run", prompt="a circle"), folder, events.append)
    return events


def test_a_run_without_a_checkpoint_says_when_there_will_be_one(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run")
    why = r"no checkpoint yet; the first comes at training\.save_steps"
    with pytest.raises(LimnerError, match=why):
        explained(Explainer(device="cpu"), run)


def test_the_newest_checkpoint_is_drawn_from(folder: Path, tmp_path: Path) -> None:
    copy, explainer = shutil.copytree(folder, tmp_path / "run"), Explainer(device="cpu")
    made_up_checkpoint(copy / "checkpoint-3")
    kinds = [[event["kind"] for event in explained(explainer, copy)] for _ in range(2)]
    assert kinds[0] == ["opening", *kinds[1]]
    shutil.copytree(copy / "checkpoint-3", copy / "checkpoint-7")
    assert explained(explainer, copy)[0]["kind"] == "opening"


def test_a_model_that_took_the_place_of_another_is_drawn_from(folder: Path, tmp_path: Path) -> None:
    copy, explainer = shutil.copytree(folder, tmp_path / "run"), Explainer(device="cpu")
    shutil.copytree(copy / "checkpoint-3", copy / "checkpoint-9")
    explained(explainer, copy)
    shutil.rmtree(copy / "checkpoint-9")
    assert explained(explainer, copy)[0]["kind"] == "opening"


def test_an_architecture_without_words_says_so(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run")
    made_up_checkpoint(folder / "checkpoint-3", "model.architecture=dit")
    (picture,) = [e for e in explained(Explainer(device="cpu"), folder) if e["kind"] == "picture"]
    assert picture["words"] is None


def test_ctrl_c_ends_a_drawing_at_its_next_step(folder: Path) -> None:
    explainer, ended = Explainer(device="cpu"), []

    def tell(event: dict[str, Any]) -> None:
        if event["kind"] == "progress" and not ended:
            ended.append(explainer.stop(0.1))

    with pytest.raises(ConnectionAbortedError):
        explainer.explain(ExplainRequest(run="run", prompt="x"), folder, tell)
    assert ended == [True]


# The command


def test_the_command_serves_until_ctrl_c(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    opened = visit_pages(monkeypatch, tmp_path / "page.html")
    assert main(["watch", str(folder.parent), "--port", "0", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Watch run at http://127.0.0.1:")
    assert len(opened) == 1
    assert "<main>" in (tmp_path / "page.html").read_text("utf-8")


def test_no_run_is_told_before_anything_is_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", str(tmp_path), "--no-browser"]) == 2
    assert f"{tmp_path} has no run in it" in capsys.readouterr().err


# In a browser

LEAST_OF_LINES = 3.0
"""Least contrast of what is no text (WCAG 2.2, success criterion 1.4.11)."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = browser_or_skip()
    with open_browser(program, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Page) -> Iterator[Page]:
    yield browser
    browser.go("about:blank", 1280, dark=False)  # it would go on asking a server that has ended


def until(page: Page, script: str, within: float = 90.0) -> None:
    end = time.monotonic() + within
    while not page.ask(script):
        assert time.monotonic() < end, f"never: {script}"
        time.sleep(0.1)


def text(page: Page, selector: str) -> str:
    return page.ask(f"document.querySelector({json.dumps(selector)}).textContent")


def choose(page: Page, run: str) -> None:
    page.ask(f"document.querySelector('#chips [data-run={run}]').click()")


def points_of(page: Page, chart: str, series: str) -> int:
    return page.ask(
        f"document.querySelector('[data-chart={chart}] [data-series={series}]')"
        ".getAttribute('points').trim().split(' ').length"
    )


def test_what_a_live_run_does_appears_without_a_reload(
    page: Page, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    often = ["training.preview_steps=3", "sampling.num_inference_steps=1"]
    Trainer(tiny_config(*often, "training.max_steps=6")).train()
    with serving(run=tmp_path / "run", other=made_up_run(tmp_path / "other")) as server:
        page.go(server.address, 1280, dark=False)
        page.ask("window.mark = 1")
        until(page, "document.querySelector('[data-chart=loss] polyline') !== null")
        choose(page, "run")
        choose(page, "other")  # no longer
        until(page, "document.querySelectorAll('#chips [aria-pressed=true]').length === 1")
        until(page, "document.querySelector('#shots img')?.src.includes('run=run')")
        assert page.ask("document.getElementById('slider').max") == "1"
        assert points_of(page, "loss", "training") == 6
        assert text(page, "#figures dd") == "6"

        longer = tiny_config(*often, "training.max_steps=12", "training.resume=auto")
        Trainer(longer, resume="latest").train()
        until(page, "document.getElementById('slider').max === '3'")
        until(page, "document.querySelector('#figures dd').textContent === '12'")
        assert points_of(page, "loss", "training") == 12
        assert points_of(page, "loss", "trained") == 4
        until(page, "document.querySelector('#shots img').naturalWidth > 0")
        assert "step=12" in page.ask("document.querySelector('#shots img').src")
        assert text(page, "#events li:nth-child(1)").startswith("step 12")
        assert page.ask("window.mark") == 1
        assert page.ask("location.search") == ""
        assert page.complaints() == []
        assert {url.split("/")[2] for url in page.requests()} == {f"127.0.0.1:{server.server_port}"}


def test_two_runs_are_compared(page: Page, tmp_path: Path) -> None:
    first, second = made_up_run(tmp_path / "first"), made_up_run(tmp_path / "second")
    changed = (second / "config.yaml").read_text("utf-8").replace("seed: 7", "seed: 8")
    (second / "config.yaml").write_text(changed, "utf-8")
    os.utime(second / "log.jsonl", (1, 1))  # the newest stands first
    with serving(second=second, first=first) as server:
        page.go(server.address, 1280, dark=True)
        until(page, "document.querySelectorAll('#chips button').length === 2")
        assert page.ask("document.getElementById('differences').hidden")
        page.ask("document.querySelectorAll('#chips button')[1].focus()")
        page.ask("document.activeElement.click()")
        until(page, "document.querySelectorAll('[data-chart=heldOf] polyline').length === 2")
        assert page.ask("document.activeElement.dataset.run") == "second", "the focus stays"
        assert page.ask("document.querySelectorAll('#shots img').length") == 2
        rows = "[...document.querySelectorAll('#differences tbody tr')].map(r => r.innerText)"
        assert page.ask(rows) == ["training.seed\t7\t8"]
        before = page.ask("document.querySelector('[data-chart=heldOf] svg').textContent")
        page.ask("document.querySelector('[data-axis=minutes]').click()")
        after = page.ask("document.querySelector('[data-chart=heldOf] svg').textContent")
        assert "images seen" in before
        assert "minutes" in after
        assert page.complaints() == []


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_speaks_both_languages_and_shows_what_is_hostile_as_text(
    page: Page, server: Server, width: int
) -> None:
    page.go(server.address, width, dark=width == 390)
    until(page, "document.querySelectorAll('[data-chart] polyline').length > 0")
    page.ask("document.getElementById('more').open = true")
    for language, word in (("en", "Learning curves"), ("zh-CN", "学习曲线")):
        if page.ask("document.documentElement.lang") != language:
            page.ask("document.getElementById('language').click()")
        assert page.ask("document.documentElement.lang") == language
        assert word in page.ask("document.body.innerText")
        assert page.ask("document.documentElement.scrollWidth") <= width
        left_out = "[...document.querySelectorAll('[data-t]')].filter(e => !e.textContent).length"
        assert page.ask(left_out) == 0
        assert "undefined" not in page.ask("document.body.innerText")
    page.ask("document.getElementById('language').click()")
    assert HOSTILE in page.ask("document.getElementById('events').innerText")
    assert page.ask("document.querySelectorAll('main script, #events img').length") == 0
    assert page.complaints() == []


def test_both_languages_have_the_same_words(page: Page, server: Server) -> None:
    page.go(server.address, 1280, dark=False)
    assert page.ask("Object.keys(WORDS.en).join() === Object.keys(WORDS.zh).join()")
    assert page.ask("Object.keys(WORDS.en).every(k => typeof WORDS.en[k] === typeof WORDS.zh[k])")


def press(page: Page, key: str, code: int, text: str = "") -> None:
    about = {"key": key, "code": key, "windowsVirtualKeyCode": code, "text": text}
    page.call("Input.dispatchKeyEvent", type="keyDown", **about)
    page.call("Input.dispatchKeyEvent", type="keyUp", **about)


def test_charts_previews_and_drawing_need_no_mouse(page: Page, server: Server) -> None:
    page.go(server.address, 1280, dark=False)
    until(page, "document.querySelectorAll('[data-chart] polyline').length > 0")
    page.ask("document.querySelector('[data-chart=loss]').focus()")
    newest = text(page, "[data-chart=loss] .legend")
    for _ in range(30):
        press(page, "ArrowLeft", 37)
    assert text(page, "[data-chart=loss] .legend") != newest
    press(page, "Escape", 27)
    assert text(page, "[data-chart=loss] .legend") == newest
    page.ask("document.getElementById('slider').focus()")
    press(page, "Home", 36)
    assert page.ask("document.querySelector('#shots img').src").endswith("step=0")
    page.ask("document.getElementById('prompt').focus()")
    page.call("Input.insertText", text="a small red circle")
    press(page, "Enter", 13, "\r")
    until(page, "document.querySelectorAll('#words .enlarge img').length === 4")
    assert page.ask("document.querySelectorAll('#trajectory img').length") == 2 + 1
    assert "checkpoint at step 3" in text(page, "#status")
    assert page.complaints() == []


def test_the_run_with_progress_is_shown_and_the_empty_one_is_last(
    page: Page, folder: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text("training: {}\n", "utf-8")
    (empty / "log.jsonl").write_text('{"kind": "plan", "step": 0}\n', "utf-8")
    with serving(empty=empty, run=folder) as server:
        page.go(server.address, 1280, dark=False)
        until(page, "document.querySelectorAll('#chips button').length === 2")
        assert page.ask(
            "[...document.querySelectorAll('#chips button')].map(b => b.dataset.run)"
        ) == [*("run", "empty")]
        assert text(page, "#title") == "run"


LINE = """
line => {
  const style = getComputedStyle(line);
  const run = line.dataset.series ?? line.closest("button").dataset.run;
  return [run, style.stroke + style.strokeDasharray];
}
"""


@pytest.mark.parametrize("dark", [False, True])
def test_twelve_runs_have_twelve_lines_that_keep_their_looks(
    page: Page, tmp_path: Path, dark: bool
) -> None:
    runs = {f"run{i:02d}": made_up_run(tmp_path / f"run{i:02d}") for i in range(13)}
    with serving(**runs) as server:
        page.go(server.address, 1280, dark=dark)
        until(page, "document.querySelectorAll('#chips button').length === 13")
        first = page.ask("document.querySelector('#chips [aria-pressed=true]').dataset.run")
        others = [name for name in runs if name != first]
        for name in others[:11]:
            choose(page, name)
        until(page, "document.querySelectorAll('[data-chart=heldOf] polyline').length === 12")

        def looks(where: str) -> dict[str, str]:
            lines = f"[...document.querySelectorAll('{where}')]"
            return page.ask(f"Object.fromEntries({lines}.map({LINE}))")

        drawn = looks("[data-chart=heldOf] polyline")
        assert len(set(drawn.values())) == 12
        assert looks("#chips .swatch line") == drawn, "each says which line is its own"
        faint = page.ask(f"""
        (() => {{
          const parse = text => text.match(/[\\d.]+/g).map(Number);
          const light = colour => {{
            const [r, g, b] = parse(colour).map(x => x / 255)
              .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          }};
          const paper = light(getComputedStyle(document.body).backgroundColor);
          return [...document.querySelectorAll("[data-chart=heldOf] polyline")].map(line => {{
            const [a, b] = [light(getComputedStyle(line).stroke), paper].sort((x, y) => y - x);
            return (a + 0.05) / (b + 0.05);
          }}).filter(contrast => contrast < {LEAST_OF_LINES});
        }})()
        """)
        assert faint == []
        choose(page, others[2])  # no longer; and another in its place
        until(page, "document.querySelectorAll('[data-chart=heldOf] polyline').length === 11")
        choose(page, others[11])
        until(page, "document.querySelectorAll('[data-chart=heldOf] polyline').length === 12")
        after = looks("[data-chart=heldOf] polyline")
        assert after.pop(others[11]) == drawn.pop(others[2])
        assert after == drawn


@pytest.mark.parametrize("width", [390, 1280])
def test_previews_can_be_seen_on_a_phone_and_enlarged(
    page: Page, tmp_path: Path, width: int
) -> None:
    run = made_up_run(tmp_path / "run")
    shots = [Image.new("RGB", (8, 8), "red") for _ in range(8)]
    for path in (run / "previews").iterdir():
        contact_sheet(shots, ["red"] * 8).save(path)
    with serving(run=run) as server:
        page.go(server.address, width, dark=False)
        until(page, "document.querySelector('#shots img')?.naturalWidth > 0")
        scale = "(i => 96 * i.clientWidth / i.naturalWidth)(document.querySelector('#shots img'))"
        assert page.ask(scale) > 80, "pixels of one picture"
        assert page.ask("document.documentElement.scrollWidth") <= width
        page.ask("document.querySelector('#shots button').focus()")
        press(page, "Enter", 13, "\r")
        assert page.ask("document.getElementById('large').open")
        wide = "document.querySelector('dialog img').clientWidth"
        assert page.ask(wide) >= 2 * page.ask("document.querySelector('#shots img').clientWidth")
        press(page, "Escape", 27)
        assert not page.ask("document.getElementById('large').open")
        assert page.ask("document.activeElement === document.querySelector('#shots button')")
        page.ask("document.querySelector('#shots img').click()")
        assert page.ask("document.getElementById('large').open")
        page.ask("document.querySelector('dialog img').click()")
        assert not page.ask("document.getElementById('large').open")
        assert page.complaints() == []


def test_a_caption_of_the_run_fills_the_prompt_by_one_key(page: Page, server: Server) -> None:
    page.go(server.address, 1280, dark=False)
    until(page, "document.querySelectorAll('#examples button').length > 0")
    assert HOSTILE in page.ask("document.getElementById('examples').innerText")
    page.ask("document.querySelectorAll('#examples button')[1].focus()")
    time.sleep(2.5)  # it looks again meanwhile
    press(page, "Enter", 13, "\r")
    assert page.ask("document.getElementById('prompt').value") == "thumbs up: dark skin tone"
    assert page.ask("document.activeElement.id") == "prompt"
    press(page, "Enter", 13, "\r")
    until(page, "document.querySelectorAll('#words .scale').length > 3")
    assert page.ask("[...document.querySelectorAll('#words .scale')].every("
                    "s => /^[\\d.]+×[\\d.]+×$/.test(s.textContent))")  # fmt: skip
    assert page.complaints() == []


def test_a_server_that_ended_is_told_and_one_that_is_back_is_not(
    page: Page, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(run=folder) as server:
        page.go(server.address, 1280, dark=False)
        until(page, "document.querySelectorAll('[data-chart] polyline').length > 0")
    until(page, "!document.getElementById('lost').hidden")
    assert "Is the command still running?" in text(page, "#lost")
