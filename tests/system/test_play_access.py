"""`limner play` beside other users of the machine: who may ask, and what hostile clients can do."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up import made_up_checkpoint
from PIL import Image

from limner.apps.play.painter import Painter, keep
from limner.apps.play.request import DrawRequest
from limner.apps.play.server import Handler, Server
from limner.apps.serving import server as serving
from limner.apps.serving.access import Access, is_own_page, means_us
from limner.apps.serving.events import Events
from limner.apps.serving.server import NO_TOKEN
from limner.commands.serving import second_ctrl_c_ends_at_once
from limner.errors import LimnerError
from limner.inference.saving import remember


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "shapes"
    made_up_checkpoint(folder / "checkpoint-3")
    return folder


@pytest.fixture
def server(run: Path, tmp_path: Path) -> Iterator[Server]:
    with Server(Painter(run, tmp_path / "kept", device="cpu"), 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def connected(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.server_port), timeout=60)


def told(server: Server, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers, and body of the answer to these very bytes."""
    with connected(server) as client:
        client.sendall(request)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


def get(server: Server, path: str = "/model", **headers: str) -> tuple[int, dict[str, str], bytes]:
    named = {"Host": "localhost"} | {name.replace("_", "-"): v for name, v in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return told(server, f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())


def post(server: Server, body: bytes, path: str = "/draw", **headers: str) -> tuple[int, Any]:
    named = {
        "Host": "localhost",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Authorization": f"Bearer {server.access.token}",
    } | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    request = f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body
    status, found, content = told(server, request)
    if found["Content-Type"] == "application/x-ndjson":
        return status, [json.loads(line) for line in content.splitlines()]
    return status, json.loads(content)


# The token


def test_without_the_token_nothing_is_answered(server: Server, tmp_path: Path) -> None:
    other = Access()
    for path in ("/", "/model", "/else", "/?token=", f"/?token={other.token}", "/?token=%ff"):
        status, _, body = get(server, path)
        assert (status, b"limner play" in body) == (403, True), path
    for headers in (
        {"Authorization": f"Bearer {other.token}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer caf\u00e9"},
        {"Authorization": f"Basic {server.access.token}"},
        {"Cookie": server.access.cookie_name},
        {"Cookie": f"{server.access.cookie_name}=x; ;=;{other.cookie_name}={other.token}"},
        {"Cookie": f"other={server.access.token}"},
    ):
        assert get(server, **headers)[0] == 403, headers
        status, said = post(server, b'{"prompts": ["x"]}', **{"Authorization": ""} | headers)
        assert (status, said) == (403, {"message": NO_TOKEN.format(command="play")})
        assert post(server, b"{}", "/newest", **{"Authorization": ""} | headers)[0] == 403
    assert not (tmp_path / "kept").exists()


def test_the_address_leads_in_and_the_cookie_stays(server: Server) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{40,}", server.address)
    status, headers, body = get(server, "/" + server.address.rpartition("/")[2])
    assert (status, b"<title>Limner</title>" in body) == (200, True)
    assert server.access.token.encode() not in body
    cookie, *how = headers["Set-Cookie"].split("; ")
    assert set(how) == {"Path=/", "HttpOnly", "SameSite=Strict"}
    assert headers["Referrer-Policy"] == "no-referrer"
    assert get(server, "/model", Cookie=f"a=b; {cookie}")[0] == 200
    assert get(server, "/", Cookie=cookie)[0] == 200
    assert get(server, Authorization=f"Bearer {server.access.token}")[0] == 200


def test_each_server_has_a_secret_of_its_own() -> None:
    one, other = Access(), Access()
    assert one.token != other.token
    assert one.cookie_name != other.cookie_name, "cookies do not tell ports apart"
    assert one.is_granted("", [one.cookie, other.cookie], None)


def test_the_token_is_not_in_the_log(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "limner")
    get(server, f"/model?token={server.access.token}")
    assert "GET /model" in caplog.text
    assert server.access.token not in caplog.text


# Requests that are none


@pytest.mark.parametrize("host", ["", "[::1", "[", "a@localhost", "localhost:80:80", "localhost:x"])
def test_an_odd_host_is_refused(host: str, server: Server) -> None:
    assert not means_us([host])
    assert get(server, Host=host, Authorization=f"Bearer {server.access.token}")[0] == 403


def test_no_host_and_two_hosts_are_refused(server: Server) -> None:
    token = f"Authorization: Bearer {server.access.token}\r\n"
    for hosts in ("", "Host: localhost\r\nHost: evil.example\r\n"):
        request = f"GET /model HTTP/1.1\r\n{hosts}{token}\r\n"
        assert told(server, request.encode())[0] == 403
    assert means_us(["LOCALHOST:1"])
    assert not means_us(["127.0.0.1.evil.example"])
    assert not means_us(["localhost."])


def test_the_origin_is_compared_whole() -> None:
    assert is_own_page(None, "localhost:1")
    assert is_own_page("http://localhost:1", "localhost:1")
    for origin in ("null", "", "http://[", "localhost:1", "file://localhost:1", "http://localhost"):
        assert not is_own_page(origin, "localhost:1")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"null", 200),
        (b"[]", 200),
        (b"7", 200),
        (b'"' + b"x" * 10**6 + b'"', 200),
        (b'{"prompts": ["\\ud800"]}', 200),
        (b'{"prompts": ["x"], "seed": 1e999}', 200),
        (b'{"prompts": ["' + b"x" * 20_000 + b'"]}', 200),
        (b'{"prompts": ["x"], "' + b"k" * 10**6 + b'": 1}', 200),
        (b'{"prompts": [' + b"0," * 10_000 + b"0]}", 200),
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 200_000, 400),
        (b'{"a":' * 200_000, 400),
        (b'{"seed": ' + b"9" * 10_000 + b"}", 400),
    ],
)
def test_a_body_that_cannot_be_used_is_told(
    body: bytes, status: int, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    found, said = post(server, body)
    assert found == status
    message = said["message"] if status != 200 else said[0]["message"]
    assert message
    assert len(message) < 2000
    assert status == 400 or [event["kind"] for event in said] == ["error"]
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "length", ["", "-1", "+3", "3.0", "0x3", "\u0663", "9" * 5000, "99999999999", "3, 3"]
)
def test_a_length_that_is_none_is_refused(length: str, server: Server) -> None:
    status, said = post(server, b"{}", Content_Length=length)
    assert (status, "bytes" in said["message"]) == (413, True)


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET //[ HTTP/1.1",
        b"GET http://[/ HTTP/1.1",
        b"GET /?" + b"a=b&" * 5000 + b" HTTP/1.1",
        b"GET /\xff\x1b[2J HTTP/1.1",
        b"GET / HTTP/9.9",
        b"GET",
        b"\x16\x03\x01\x02\x00\x01",  # TLS
        b"BREW / HTTP/1.1",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1",
    ],
)
def test_a_request_line_that_is_none_is_refused(
    request_line: bytes, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    with connected(server) as client:
        client.sendall(request_line + b"\r\nHost: localhost\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        try:
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        except ConnectionResetError:
            answer = b""
    assert b" 200 " not in answer.partition(b"\n")[0]
    assert get(server)[0] == 403, "it goes on serving"
    assert "Traceback" not in "".join(capfd.readouterr())


def test_what_fails_is_told_in_a_sentence(
    server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise KeyError("prompt")

    monkeypatch.setattr(server.painter, "about", fail)
    status, _, body = get(server, Authorization=f"Bearer {server.access.token}")
    assert (status, json.loads(body)) == (500, {"message": "KeyError: 'prompt'"})
    assert "Traceback" not in "".join(capfd.readouterr())


# Clients that wait, and that do not read


def test_who_says_nothing_or_half_is_let_go(
    server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serving, "HEAD_WITHIN", 0.2)
    monkeypatch.setattr(Handler, "timeout", 0.5)
    token = server.access.token.encode()
    head = b"POST /draw HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + token + b"\r\n"
    body = b'Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"prompts"'
    for half in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\n", head + body):
        with connected(server) as client:
            client.sendall(half)
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert b" 200 " not in answer
    assert "Traceback" not in "".join(capfd.readouterr())


def test_who_says_a_letter_now_and_then_is_let_go(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each comes in time for a read; the whole request does not."""
    monkeypatch.setattr(serving, "HEAD_WITHIN", 0.3)
    with connected(server) as client:
        client.settimeout(0.05)
        for _ in range(60):  # three seconds
            try:
                client.sendall(b"x")
                if client.recv(65536) == b"":
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            pytest.fail("it still listens")


def test_more_connections_than_there_are_threads_for_are_closed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.free = threading.Semaphore(2)
    with connected(server) as one, connected(server) as two, connected(server) as three:
        assert three.recv(1) == b""
        one.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert one.recv(1) == b"H"
        two.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert two.recv(1) == b"H"
    for _ in range(200):
        if server.free._value == 2:
            break
        time.sleep(0.01)
    assert get(server)[0] == 403


def test_who_does_not_read_holds_up_no_drawing() -> None:
    sending, let_go, sent = threading.Event(), threading.Event(), list[Any]()

    def write(line: bytes) -> None:
        sending.set()
        assert let_go.wait(60)
        sent.append(json.loads(line))

    events = Events(write)
    events.tell({"kind": "waiting"})
    assert sending.wait(60)
    for step in range(1000):
        events.tell({"kind": "progress", "step": step})
    events.tell({"kind": "picture", "number": 0})
    let_go.set()
    events.finish()
    assert [event["kind"] for event in sent] == ["waiting", *["progress"] * 32, "picture"]
    assert [event["step"] for event in sent[1:-1]] == list(range(968, 1000))


def test_who_has_left_is_told_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(line: bytes) -> None:
        raise TimeoutError

    events = Events(leave)
    events.tell({"kind": "waiting"})
    events._thread.join(60)
    with pytest.raises(ConnectionError):
        events.tell({"kind": "progress"})
    events.finish()

    let_go = threading.Event()
    monkeypatch.setattr("limner.apps.serving.events.MOST_WAITING", 1000)
    events = Events(lambda line: let_go.wait(60))

    def tell_much() -> None:
        for _ in range(4):  # one is being sent, one waits, and the next is too much
            events.tell({"kind": "picture", "png": "x" * 900})

    with pytest.raises(ConnectionError):
        tell_much()
    let_go.set()
    events.finish()


# What is kept


def test_a_link_that_somebody_put_there_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "a-0.png").symlink_to(victim)
    image = remember(Image.new("RGB", (4, 4)), {"prompt": "a", "seed": 0})
    assert keep(image, kept) == kept / "a-0-2.png"
    assert not victim.exists()


def test_a_picture_that_cannot_be_kept_is_shown_all_the_same(run: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file is in the way")
    painter = Painter(run, tmp_path / "kept", device="cpu")
    events: list[dict[str, Any]] = []
    with pytest.raises(LimnerError, match=r"2 of 2 images could not be saved in .*kept"):
        painter.draw(DrawRequest(prompts=("x",), num_images=2), events.append)
    assert [e["kind"] for e in events if e["kind"] == "picture"] == ["picture"] * 2


# The end


SIGNALS = pytest.mark.skipif(sys.platform == "win32", reason="SIGINT reaches no other process")
HEARS_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
"""What is started in the background of a shell would ignore it."""
THE_COMMAND = "import sys; from limner.cli import main; sys.exit(main(sys.argv[1:]))"
CTRL_C = "import os; ctrl_c = lambda *_: os.kill(os.getpid(), signal.SIGINT)"
AGAIN = {
    "while it waits for the drawing": (
        "from limner.apps.play import painter, server; stop = painter.Painter.stop\n"
        "painter.Painter.stop = lambda self: (stop(self, 0), ctrl_c())"
    ),
    "once it has ended that": (
        "from limner.commands import serving; serving.say = print_then_ctrl_c"
    ),
    "in Python's own end": "import atexit; atexit.register(ctrl_c)",
}
"""Where a second Ctrl-C comes in, by the code that sends it there."""
PRINT_THEN = "print_then_ctrl_c = lambda *w: print(*w, flush=True) if w else ctrl_c()"


def ended_by_ctrl_c(run: Path, when: str, *lines: str) -> tuple[int, str]:
    """Exit code and stderr of `limner play`, interrupted before, while, or after it draws.

    Args:
        lines: of Python, run before the command is.
    """
    program = "\n".join([HEARS_CTRL_C, *lines, THE_COMMAND])
    words = ["play", str(run), "--port", "0", "--device", "cpu", "--no-browser"]
    command = [sys.executable, "-c", program, *words]
    playing = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert playing.stdout is not None
        found = re.search(r"127\.0\.0\.1:(\d+)/\?token=(\S+)", playing.stdout.readline())
        assert found
        steps = 1000 if when == "while" else 1
        asked = f'{{"prompts": ["x"], "num_images": 64, "num_inference_steps": {steps}}}'.encode()
        head = (
            "POST /draw HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {found[2]}\r\nContent-Length: {len(asked)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", int(found[1])), timeout=60) as client:
            if when != "before":
                client.sendall(head.encode() + asked)
                answer = client.makefile("rb")
                wanted = b'"progress"' if when == "while" else b'"done"'
                assert any(wanted in line for line in answer)
            playing.send_signal(signal.SIGINT)
            _, err = playing.communicate(timeout=60)
    finally:
        playing.kill()
    return playing.returncode, err


@SIGNALS
@pytest.mark.parametrize("when", ["before", "while", "after"])
def test_ctrl_c_ends_without_a_traceback(when: str, run: Path) -> None:
    assert ended_by_ctrl_c(run, when) == (130 if when == "while" else 0, "")


@SIGNALS
@pytest.mark.parametrize("again", AGAIN)
def test_a_second_ctrl_c_ends_at_once_without_a_traceback(again: str, run: Path) -> None:
    when = "before" if again == "in Python's own end" else "while"
    found = ended_by_ctrl_c(run, when, CTRL_C, PRINT_THEN, AGAIN[again])
    assert found == (130, "")


@SIGNALS
def test_where_ctrl_c_is_ignored_it_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with second_ctrl_c_ends_at_once():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with second_ctrl_c_ends_at_once():
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_is_about_to_be_drawn_counts_as_a_drawing(run: Path) -> None:
    painter = Painter(run, device="cpu")
    painter.lock.acquire()  # as who draws does first
    assert painter.stop(0.01) is True


def test_when_the_command_ends_nobody_begins_to_draw(run: Path) -> None:
    painter = Painter(run, device="cpu")
    assert painter.stop(0.1) is False
    painter.lock.release()
    with pytest.raises(ConnectionError, match="the server is shutting down"):
        painter.draw(DrawRequest(prompts=("x",)), lambda event: None)
    assert not painter.lock.locked()
