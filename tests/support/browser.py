"""A headless Chromium of this machine, driven over its DevTools protocol.

What is asked of it is what a page does: errors in its console, what it loads, how it is laid out.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

NAMES = (
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"),
    *("chrome", "msedge", "microsoft-edge"),
)
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
    r"C:\Program Files\Microsoft\Edge\Application\msedge.exe",
)
FLAGS = (
    *("--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-extensions"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-port=0"),
)
PATIENCE = 120  # seconds; a machine that does much else is slow, and not wrong


def find_browser() -> str | None:
    """The program of a browser that speaks the protocol, or None."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    return next((place for place in PLACES if Path(place).exists()), None)


def browser_or_skip() -> str:
    """Skips the test where there is no browser, unless LIMNER_TEST_BROWSER=required."""
    found = find_browser()
    if found is None:
        why = f"no Chromium, Chrome or Edge on PATH ({', '.join(NAMES)}) or in the usual places"
        if os.environ.get("LIMNER_TEST_BROWSER") == "required":
            pytest.fail(f"{why}, and LIMNER_TEST_BROWSER=required")
        pytest.skip(why)
    return found


@dataclass
class Page:
    """An open page and what was heard from it."""

    socket: ClientConnection
    session: str
    calls: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.calls += 1
        message = {"id": self.calls, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.socket.send(json.dumps(message))
        while True:
            answer = json.loads(self.socket.recv(timeout=PATIENCE))
            if answer.get("id") == self.calls:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, method: str) -> None:
        while not any(event.get("method") == method for event in self.events):
            self.events.append(json.loads(self.socket.recv(timeout=PATIENCE)))

    def open(self, file: Path, width: int, dark: bool) -> None:
        """The page as it stands on a screen of that width, loaded to the end."""
        self.go(file.resolve().as_uri(), width, dark)

    def go(self, address: str, width: int, dark: bool) -> None:
        """The same of an address."""
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **screen)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[theme])
        self.events.clear()
        self.call("Page.navigate", url=address)
        self.wait_for("Page.loadEventFired")

    def ask(self, script: str) -> Any:
        """The value of a JavaScript expression (of a promise: what it resolves to)."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def heard(self, *methods: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event.get("method") in methods]

    def complaints(self) -> list[str]:
        """Errors and warnings: of scripts, of the console, of loading."""
        return [
            json.dumps(said)
            for said in self.heard(
                "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"
            )
        ]

    def requests(self) -> list[str]:
        """Addresses of all that was loaded besides the page itself and data inside it."""
        sent = [said["request"]["url"] for said in self.heard("Network.requestWillBeSent")]
        pages = [said["documentURL"] for said in self.heard("Network.requestWillBeSent")]
        return [url for url in sent if not url.startswith("data:") and url not in pages]

    def screenshot(self, to: Path) -> None:
        """All of the page, not only what is in sight."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        to.write_bytes(base64.b64decode(answer["data"]))


@contextmanager
def open_browser(program: str, profile: Path) -> Iterator[Page]:
    """A browser with an empty profile, and in it one empty page."""
    flags = [*FLAGS, f"--user-data-dir={profile}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--no-sandbox")  # it refuses to run as root otherwise, as in a container
    profile.mkdir(parents=True, exist_ok=True)
    log = profile / "browser.log"
    with log.open("wb") as said:
        process = subprocess.Popen([program, *flags, "about:blank"], stdout=said, stderr=said)
    try:
        with connect(address_of(process, log), max_size=None, open_timeout=PATIENCE) as socket:
            whole = Page(socket, "")
            target = whole.call("Target.createTarget", url="about:blank")["targetId"]
            attached = whole.call("Target.attachToTarget", targetId=target, flatten=True)
            page = Page(socket, attached["sessionId"], calls=1000)
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            yield page
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def address_of(process: subprocess.Popen, log: Path) -> str:
    """The browser writes where it listens (on loopback only, at a port of its choice)."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        text = log.read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"DevTools listening on (ws://\S+)", text):
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise AssertionError(f"the browser did not start:\n{text}")
