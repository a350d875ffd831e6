"""The documentation builds without a warning, asks nobody else for anything, and can be read.

In both languages, on a wide screen and on a narrow one, by a real browser.
"""

import functools
import html.parser
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import Page, browser_or_skip, open_browser

ROOT = Path(__file__).parents[2]
PAGES = ("index", "faq", "how-it-works", "reference/config", "runs/emoji")
"""Opened in the browser."""


class Parts(html.parser.HTMLParser):
    """What a page links to, what it loads, and where one can link to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors = {""}
        self.formulas = 0
        self.feed(text)

    def handle_starttag(self, tag: str, given: list[tuple[str, str | None]]) -> None:
        said = {name: value or "" for name, value in given}
        self.anchors |= {said[name] for name in ("id", "name") if name in said}
        self.formulas += tag == "math"
        if tag == "a" and "href" in said:
            self.links.append(said["href"])
        if tag == "link" and not {"canonical", "alternate"} & set(said.get("rel", "").split()):
            if said.get("rel") in ("next", "prev"):
                self.links.append(said["href"])
            else:
                self.loads.append(said["href"])
        if "src" in said:
            self.loads.append(said["src"])
        self.loads += [part.split()[0] for part in said.get("srcset", "").split(",") if part]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        build,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def parts(site: Path) -> dict[Path, Parts]:
    return {path: Parts(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def is_ours(path: Path) -> bool:
    """Not a page that Limner itself wrote about a run: those are whole by themselves."""
    return not path.name.startswith("evaluation-")


def test_every_document_is_a_page_in_both_languages(site: Path) -> None:
    guides = [p for p in (ROOT / "docs").rglob("*.md") if not p.name.endswith(".zh-CN.md")]
    names = [p.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for p in guides]
    assert len(names) > 10
    for name in [*names, "index.html", "changelog.html", "contributing.html", "benchmarks.html"]:
        english, chinese = site / name, site / "zh" / name
        assert english.is_file()
        text = chinese.read_text(encoding="utf-8")
        assert '<html lang="zh"' in text
        source = ROOT / "docs" / Path(name).with_suffix(".md")
        if source.with_suffix(".zh-CN.md").is_file():
            body = text.partition("<article")[2].partition("</article")[0]
            assert re.search(r"[\u4e00-\u9fff]", body), f"{name} is not in Chinese"


def test_every_link_anchor_and_picture_is_there(site: Path, parts: dict[Path, Parts]) -> None:
    missing = []
    for page, found in parts.items():
        for address in [*found.links, *found.loads]:
            split = urlsplit(address)
            if split.scheme or not is_ours(page) or page.name == "404.html":
                continue
            target = (page.parent / unquote(split.path)).resolve() if split.path else page
            target = target / "index.html" if target.is_dir() else target
            anchors = parts[target].anchors if target in parts else {unquote(split.fragment)}
            if not target.is_file() or unquote(split.fragment) not in anchors:
                missing.append((page.relative_to(site), address))
    assert missing == []


def test_nothing_is_loaded_from_anywhere_else(site: Path, parts: dict[Path, Parts]) -> None:
    for page, found in parts.items():
        away = [a for a in found.loads if urlsplit(a).scheme not in ("", "data")]
        assert away == [], page
        assert not any(a.startswith("//") for a in found.loads), page
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert re.findall(r"@import|url\(['\"]?(?:https?:)?//", text) == [], sheet


def test_formulas_are_drawn_by_the_browser_alone(parts: dict[Path, Parts]) -> None:
    for path, found in parts.items():
        text = path.read_text(encoding="utf-8")
        assert "arithmatex" not in text, path
        if path.name == "how-it-works.html":
            assert found.formulas > 20
            assert "merror" not in text


def test_the_index_of_the_search_knows_both_languages(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    assert {"en", "zh"} <= set(index["config"]["lang"])
    places = [entry["location"] for entry in index["docs"]]
    assert not any("source/" in place for place in places)
    for language, word in (("", "micro-batch"), ("zh/", "显存")):
        words = [e["text"].replace("\u200b", "") for e in index["docs"]
                 if e["location"].startswith(language + "faq.html")]  # fmt: skip
        assert any(word in text for text in words)


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with open_browser(browser_or_skip(), tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("language", ["", "zh/"])
def test_pages_can_be_read(language: str, width: int, address: str, browser: Page) -> None:
    for name in PAGES:
        browser.go(f"{address}{language}{name}.html", width, dark=width == 390)
        assert browser.complaints() == [], name
        assert [url for url in browser.requests() if not url.startswith(address)] == []
        assert browser.ask("document.documentElement.scrollWidth <= innerWidth"), name
        images = browser.ask(
            "[...document.querySelectorAll('article img')].map("
            "i => [i.src, i.naturalWidth, i.getBoundingClientRect().width])"
        )
        for image, natural, shown in images:
            assert 0 < shown <= width, image
            assert natural > 0, image
        assert browser.ask("document.body.dataset.mdColorScheme") == (
            "slate" if width == 390 else "default"
        )


@pytest.mark.parametrize(("language", "words"), [("", "accumulation"), ("zh/", "显存")])
def test_a_word_is_found(language: str, words: str, address: str, browser: Page) -> None:
    browser.go(f"{address}{language}faq.html", 1280, dark=False)
    browser.ask(
        "(() => { const box = document.querySelector('.md-search__input'); box.focus();"
        f" box.value = {json.dumps(words)};"
        " box.dispatchEvent(new Event('focus')); box.dispatchEvent(new Event('keyup'));"
        " box.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    end = time.monotonic() + 60
    places: list[str] = []
    while not places and time.monotonic() < end:
        places = browser.ask(
            "[...document.querySelectorAll('.md-search-result__link')].map(a => a.href)"
        )
        time.sleep(0.1)
    assert any("/faq.html" in place for place in places), places


def test_the_other_language_of_a_page_is_one_click_away(site: Path) -> None:
    text = (site / "zh" / "faq.html").read_text(encoding="utf-8")
    assert re.search(r'href="?\.\./faq\.html"? hreflang="?en', text)
    text = (site / "faq.html").read_text(encoding="utf-8")
    assert re.search(r'href="?(?:\./)?zh/faq\.html"? hreflang="?zh', text)
