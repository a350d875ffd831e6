"""`limner serve`: what waits is drawn together, and what is refused."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from limner.apps.images_api.access import Access, is_loopback, read_key
from limner.apps.images_api.counters import Counters
from limner.apps.images_api.errors import ApiError
from limner.apps.images_api.limits import read_limits
from limner.apps.images_api.links import Links
from limner.apps.images_api.models import name_of, named
from limner.apps.images_api.queue import Drawing, Settings, Worker
from limner.apps.images_api.request import ImagesRequest
from limner.apps.images_api.server import bound_socket, check_host
from limner.data.formats.entries import MOST_CHARACTERS
from limner.errors import LimnerError

SMALL, LARGE = Settings("one", 8, 8), Settings("one", 16, 16)
WAIT = 60


class Words:
    """A token is a letter."""

    max_length = 10

    def length(self, prompt: str) -> int:
        return len(prompt)


class Painter:
    """In place of an ImageGenerator: an image's width is its seed. Batches begin when allowed."""

    def __init__(self) -> None:
        self.words = Words()
        self.allowed, self.begun = threading.Semaphore(0), threading.Semaphore(0)
        self.batches: list[list[int]] = []
        self.most = 100
        self.refuse: Callable[[list[int], int], None] = lambda seeds, size: None

    def at_once(self, most: int, height: int, width: int) -> int:
        return min(most, self.most)

    def notes(self, prompts: Sequence[str], height: int, width: int) -> list[str]:
        return []

    def generate_batch(
        self, prompts: Sequence[str], *, seeds: list[int], batch_size: int, **settings: Any
    ) -> list[Image.Image]:
        self.batches.append(seeds)
        self.begun.release()
        assert self.allowed.acquire(timeout=WAIT)
        self.refuse(seeds, batch_size)
        settings["progress"](1, 2, None)
        return [Image.new("RGB", (seed, settings["height"])) for seed in seeds]


class Scene:
    """A worker that is drawing one image already, of seed 1, and whatever is added waits."""

    def __init__(self, batch_size: int = 4, most_waiting: int = 10) -> None:
        self.painter, self.counters = Painter(), Counters()
        both = {"one": self.painter, "two": self.painter}
        self.worker = Worker(both, batch_size, most_waiting, self.counters.batch)  # type: ignore[arg-type]
        self.first = self.add(1)
        assert self.painter.begun.acquire(timeout=WAIT)

    def add(self, *seeds: int, settings: Settings = SMALL) -> Drawing:
        drawing = Drawing(settings, [("a circle", seed) for seed in seeds])
        self.worker.add(drawing)
        return drawing

    def finish(self) -> None:
        for _ in range(100):
            self.painter.allowed.release()
        self.worker.stopping = True
        with self.worker.changed:
            self.worker.changed.notify()
        self.worker.thread.join(WAIT)
        assert not self.worker.thread.is_alive()


def drawn(drawing: Drawing) -> list[int]:
    return [image.width for image in drawing.result.result(WAIT)]


def test_what_waits_with_the_same_settings_is_drawn_together() -> None:
    scene = Scene()
    other = Settings("two", 8, 8)
    asked = [scene.add(2, 3), scene.add(4, settings=LARGE), scene.add(5), scene.add(6, 7, 8)]
    asked.append(scene.add(9, settings=other))
    scene.finish()
    assert scene.painter.batches == [[1], [2, 3, 5, 6], [4], [7, 8], [9]]
    assert [drawn(one) for one in asked] == [[2, 3], [4], [5], [6, 7, 8], [9]]
    assert scene.counters.images == {"one": 8, "two": 1}
    assert asked[1].result.result()[0].height == 16


def test_no_more_at_once_than_fit() -> None:
    scene = Scene(batch_size=4)
    scene.painter.most = 2
    asked = scene.add(2, 3, 4, 5, 6)
    scene.finish()
    assert scene.painter.batches == [[1], [2, 3], [4, 5], [6]]
    assert drawn(asked) == [2, 3, 4, 5, 6]


def test_after_memory_ran_out_batches_of_that_size_are_smaller() -> None:
    scene = Scene(batch_size=4)

    def refuse(seeds: list[int], size: int) -> None:
        if size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    scene.painter.refuse = refuse
    asked = scene.add(*range(2, 10))
    scene.finish()
    assert drawn(asked) == list(range(2, 10))
    assert scene.painter.batches == [[1], [2, 3, 4, 5], [2, 3, 4, 5], [6, 7], [8, 9]]


def test_one_request_that_fails_leaves_the_others_alone() -> None:
    scene = Scene()

    def refuse(seeds: list[int], size: int) -> None:
        if 3 in seeds:
            raise LimnerError("seed 3 brings bad luck")
        if 5 in seeds:
            raise RuntimeError("a secret path")

    scene.painter.refuse = refuse
    asked = [scene.add(seed) for seed in (2, 3, 4, 5)]
    scene.finish()
    assert (drawn(scene.first), drawn(asked[0])) == ([1], [2])
    assert drawn(asked[2]) == [4]
    errors = [asked[i].result.exception(WAIT) for i in (1, 3)]
    assert [(e.status, e.code) for e in errors if isinstance(e, ApiError)] == [
        (400, "invalid_value"),
        (500, "drawing_failed"),
    ]
    assert "bad luck" in str(errors[0])
    assert "secret" not in str(errors[1])


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    scene = Scene(most_waiting=10)
    scene.worker.seconds = 2.0
    scene.add(*range(2, 9))
    with pytest.raises(ApiError) as refused:
        scene.add(9, 10, 11, 12)
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "14")
    scene.add(9, 10, 11)  # exactly full
    assert scene.worker.length() == 10
    scene.finish()


def test_what_nobody_waits_for_is_not_drawn() -> None:
    scene = Scene()
    waiting, kept = scene.add(2, 3), scene.add(4)
    scene.worker.drop(waiting)
    scene.worker.drop(scene.first)  # which is being drawn: it ends at its next step
    scene.finish()
    assert scene.painter.batches == [[1], [4]]
    assert drawn(kept) == [4]
    assert scene.counters.images == {"one": 1}
    assert not waiting.result.done()


def test_a_batch_that_somebody_waits_for_goes_on() -> None:
    scene = Scene()
    gone, kept = scene.add(2), scene.add(3)
    scene.painter.allowed.release()
    assert scene.painter.begun.acquire(timeout=WAIT)
    scene.worker.drop(gone)
    gone.result.cancel()
    scene.finish()
    assert drawn(kept) == [3]
    with pytest.raises(CancelledError):
        gone.result.result(0)


def test_at_the_end_what_is_begun_is_finished_and_what_waits_is_refused() -> None:
    scene = Scene(batch_size=2)
    begun = scene.add(2, 3, 4)
    scene.painter.allowed.release()
    assert scene.painter.begun.acquire(timeout=WAIT)  # of the two batches, the first
    waiting = scene.add(5)
    scene.worker.stop()
    scene.finish()
    assert drawn(begun) == [2, 3, 4]
    error = waiting.result.exception(WAIT)
    assert isinstance(error, ApiError)
    assert error.status == 503
    with pytest.raises(ApiError, match="stopping"):
        scene.add(6)


# Requests


def refused(body: bytes) -> tuple[str | None, str | None]:
    with pytest.raises(ApiError) as error:
        ImagesRequest.read(body)
    assert error.value.status == 400
    return error.value.param, error.value.code


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"{}", "prompt", "missing_required_parameter"),
        (b'{"prompt": "a", "guidence_scale": 3}', "guidence_scale", "unknown_parameter"),
        (b'{"prompt": "a", "n": 11}', "n", "integer_above_max_value"),
        (b'{"prompt": "a", "n": true}', "n", "invalid_value"),
        (b'{"prompt": "a", "n": 0}', "n", "integer_below_min_value"),
        (b'{"prompt": "a", "seed": -1}', "seed", "invalid_value"),
        (b'{"prompt": "a", "guidance_scale": NaN}', "guidance_scale", "invalid_value"),
        (b'{"prompt": "a", "output_format": "webp"}', "output_format", "invalid_value"),
        (b'{"prompt": "a", "stream": true}', "stream", "invalid_value"),
        (b'{"prompt": "a", "background": "transparent"}', "background", "invalid_value"),
        (b'{"prompt": "\\ud800"}', "prompt", "invalid_value"),
        (b"[" * 100_000, None, "invalid_json"),
        (b'{"prompt": "\xff"}', None, "invalid_json"),
        (b"[]", None, "invalid_json"),
        (b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}", None, "invalid_json"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_as_the_api_says_it(
    body: bytes, param: str | None, code: str
) -> None:
    assert refused(body) == (param, code)


def test_a_long_prompt_is_refused() -> None:
    long = b'{"prompt": "%s"}' % (b"a" * (MOST_CHARACTERS + 1))
    assert refused(long) == ("prompt", "string_above_max_length")
    assert ImagesRequest.read(b'{"prompt": "%s"}' % (b"a" * MOST_CHARACTERS))


def test_what_programs_send_besides_is_accepted() -> None:
    asked = ImagesRequest.read(
        b'{"prompt": "a", "n": null, "size": null, "quality": "hd", "style": "vivid", "user": "x",'
        b'"moderation": "low", "background": "auto", "output_format": "png", "stream": false}'
    )
    assert (asked.n, asked.size, asked.height_and_width()) == (1, "auto", None)


def test_sizes_are_width_before_height() -> None:
    assert ImagesRequest(prompt="a", size="32x16").height_and_width() == (16, 32)
    for size in ("32", "32x", "0x16", "-1x16", "32X16", "32x16x1", "999999x16", ""):
        with pytest.raises(ApiError, match="WIDTHxHEIGHT"):
            ImagesRequest(prompt="a", size=size).height_and_width()


def test_seeds_count_up_or_are_random() -> None:
    assert ImagesRequest(prompt="a", n=3, seed=2**63 - 2).seeds() == [2**63 - 2, 2**63 - 1, 0]
    assert ImagesRequest(prompt="a").seeds() != ImagesRequest(prompt="a").seeds()


# Names, keys, addresses, links


def test_models_are_called_by_their_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo" / "checkpoint-3").mkdir(parents=True)
    (tmp_path / "apple.safetensors").touch()
    (tmp_path / "a=b").mkdir()
    assert name_of(str(tmp_path / "demo")) == name_of(str(tmp_path / "demo/checkpoint-3")) == "demo"
    assert name_of(str(tmp_path / "apple.safetensors")) == "apple"
    assert name_of("me/fruit@main") == "me/fruit"
    monkeypatch.chdir(tmp_path / "demo")
    assert name_of(".") == "demo"
    assert named(["x=a", "y/z=b=c", "."]) == {"x": "a", "y/z": "b=c", "demo": "."}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LimnerError, match="NAME=CHECKPOINT"):
        named(["a=b"])  # a folder that is there, whose name cannot be a model's
    assert named(["x=a=b"]) == {"x": "a=b"}
    with pytest.raises(LimnerError, match="both be called demo"):
        named(["demo", "demo/checkpoint-3"])
    for word in ("=demo", "demo2=", 'a"b=demo', "a\n=demo"):
        with pytest.raises(LimnerError, match="NAME=CHECKPOINT"):
            named([word])


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("of-a-file-0123456789\n")
    file.chmod(0o600)
    environment = {"LIMNER_API_KEY": "of-the-environment"}
    assert read_key(file, environment) == "of-a-file-0123456789"
    assert read_key(None, environment) == "of-the-environment"
    assert read_key(None, {}) is None
    for bad in ("", "short", "two words are no key", "schlüssel-0123456789"):
        with pytest.raises(LimnerError, match="LIMNER_API_KEY holds no usable key"):
            read_key(None, {"LIMNER_API_KEY": bad})
        if bad.strip():
            with pytest.raises(LimnerError) as error:
                read_key(None, {"LIMNER_API_KEY": bad})
            assert bad not in str(error.value)
    with pytest.raises(LimnerError, match="cannot be read"):
        read_key(tmp_path / "missing", {})


def test_other_machines_are_served_only_with_a_key() -> None:
    for host in ("127.0.0.1", "127.0.0.7", "::1", "localhost"):
        assert is_loopback(host)
        check_host(host, None)
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.com", ""):
        assert not is_loopback(host)
        with pytest.raises(LimnerError, match="without an API key anyone could draw"):
            check_host(host, None)
        check_host(host, "0123456789abcdef")


def test_who_may_ask() -> None:
    free, locked = Access(None), Access("0123456789abcdef")
    free.check_key(None)
    free.check_host(["localhost:8767"])
    locked.check_host(["example.com"])  # it may be behind a proxy
    locked.check_key("Bearer 0123456789abcdef")
    for hosts in ([], ["example.com"], ["localhost", "localhost"], ["localhost.example.com"]):
        with pytest.raises(ApiError) as error:
            free.check_host(hosts)
        assert error.value.status == 403
    for given in (None, "", "Bearer ", "Bearer 0123456789abcdee", "0123456789abcdef", "Bearer é"):
        with pytest.raises(ApiError) as error:
            locked.check_key(given)
        assert error.value.status == 401


def test_a_port_that_is_taken_is_told() -> None:
    with bound_socket("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(LimnerError, match="is in use by another program"):
            bound_socket("127.0.0.1", taken.getsockname()[1])
    for port in (-1, 2**20):
        with pytest.raises(LimnerError, match="cannot be used"):
            bound_socket("127.0.0.1", port)


def test_images_behind_urls_are_forgotten() -> None:
    clock = [0.0]
    links = Links(lasts=10, most_bytes=100, now=lambda: clock[0])
    first = links.add(b"a" * 40)
    clock[0] = 5
    second = links.add(b"b" * 40)
    assert links.get(first) == b"a" * 40
    clock[0] = 10
    assert links.get(first) is None
    assert links.get(second) == b"b" * 40
    third = links.add(b"c" * 90)
    assert links.get(second) is None
    assert links.get(third) == b"c" * 90
    assert links.get("") is None
    assert links.size == 90


def test_limits_name_their_flag() -> None:
    for name, value in (("batch_size", 0), ("queue", 5), ("timeout", 0.0), ("timeout", "nan")):
        with pytest.raises(LimnerError, match=f"--{name}"):
            read_limits(**{name: value})


def test_what_is_counted_is_read_by_prometheus() -> None:
    counters = Counters()
    counters.request(200, 0.2)
    counters.request(200, 3.0)
    counters.request(429, 0.001)
    counters.batch('a"b', 3, 0.5)
    lines = counters.text(running=2, waiting=7).splitlines()
    for line in (
        'limner_requests_total{status="200"} 2',
        'limner_requests_total{status="429"} 1',
        r'limner_images_total{model="a\"b"} 3',
        r'limner_drawing_seconds_total{model="a\"b"} 0.5',
        "limner_queue_length 7",
        "limner_requests_running 2",
        'limner_request_seconds_bucket{le="0.1"} 0',
        'limner_request_seconds_bucket{le="0.25"} 1',
        'limner_request_seconds_bucket{le="5"} 2',
        'limner_request_seconds_bucket{le="+Inf"} 2',
        "limner_request_seconds_sum 3.2",
        "limner_request_seconds_count 2",
    ):
        assert line in lines
    for line in lines:
        assert line.startswith(("# HELP ", "# TYPE ")) or len(line.rsplit(" ", 1)) == 2
