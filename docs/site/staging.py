"""The repository's documents as the pages of a site.

Documents are written to be read where they lie: README.md links to docs/, guides to source files
and results. For the site they are copied into one folder, and every link is turned to where its
target is there: another page, a picture, or a page made of a source file.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMES = {
    "README.md": "index.md",
    "README.zh-CN.md": "index.zh.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Documents outside of docs/, and what they are called in the site."""
NAVIGATION = {
    "Start": ("index", "install", "own-pictures", "tour", "tutorial", "coming-from", "faq"),
    "Your data": ("data", "checking", "streaming"),
    "Train": ("watch", "terminal", "trackers", "finetuning", "buckets", "launching", "reliability"),
    "Draw": ("sampling", "editing", "distill"),
    "Measure": (
        "evaluation",
        "runs/emoji",
        "runs/emoji-pixels",
        "runs/emoji-latents",
        "benchmarks",
    ),
    "Share": ("anywhere", "publishing", "serving", "comfyui"),
    "Understand": ("how-it-works", "recipe", "contributing", "changelog"),
    "Reference": ("reference/config", "reference/cli", "reference/api"),
}
"""By what a reader wants to do. What is not there is left out; what is not named comes last."""
LANGUAGES = re.compile(r"\[(?:中文|中文说明|English)\]\([^)]*\)(?: · )?")
"""The switch between languages, which the site has at the top of each page."""
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?(?=\))")
FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
CHINESE = r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"
BROKEN = re.compile(rf"(?<={CHINESE})\n *(?={CHINESE})")
"""A line that ends between two Chinese characters."""
DEMOS, DEMO = ("outputs/demo-fast", "outputs/demo"), "demo.html"
"""Runs that `limner demo`, and `limner distill` of it, leave here; the first that is there."""
DEMO_HERE = "<!-- the demo's page -->"
"""Where a document has its link to it, if the site is built where there is such a run."""
DEMO_LINK = (
    f'<a href="{DEMO}">Try it: the demo\'s model, in your browser</a> (11 MB).',
    f'<a href="../{DEMO}">试一试：在浏览器里用演示的模型画图</a>（11 MB）。',
)
"""In English and in Chinese."""
RAW = (".png", ".svg", ".jpg", ".jsonl", ".json", ".html", ".npz")
"""Files that are given out as they are."""
NO_WORD = re.compile(r"[^\w/]")
KINDS = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".css": "css"}


def stage(to: Path) -> list[dict[str, list[str]]]:
    """Write all pages into a folder, which is emptied first; returns the navigation."""
    if to.exists():
        shutil.rmtree(to)
    stage = Stage(to)
    stage.demo = demo_page(to)
    for path in documents():
        stage.document(path)
    for name in ("extra.css",):
        stage.copy(f"docs/site/{name}", f"assets/{name}")
    stage.copy("docs/site/favicon.svg", "images/favicon.svg")
    return navigation({p.relative_to(to).as_posix() for p in to.rglob("*.md")})


def demo_page(to: Path) -> bool:
    """Put the page that draws with the demo's model beside the others; returns whether there is a
    demo here, or a student of it, which draws faster."""
    from limner.apps.web_page.build import export_web_page
    from limner.errors import LimnerError

    for run in DEMOS:
        if not (ROOT / run).is_dir():
            continue
        to.mkdir(parents=True, exist_ok=True)
        try:
            export_web_page(ROOT / run, to / DEMO)
        except LimnerError as error:
            print(f"no page of {run}: {error}")
            continue
        return True
    return False


def documents() -> list[str]:
    """Every document that becomes a page, as a path in the repository."""
    guides = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))
    return [*(name for name in NAMES if (ROOT / name).is_file()), *guides]


def navigation(pages: set[str]) -> list[dict[str, list[str]]]:
    named = [(title, [f"{n}.md" for n in names]) for title, names in NAVIGATION.items()]
    listed = {page for _, some in named for page in some}
    more = sorted(p for p in pages - listed if not p.endswith(".zh.md") and "source/" not in p)
    found = [(title, [p for p in some if p in pages]) for title, some in (*named, ("More", more))]
    return [{title: some} for title, some in found if some]


class Stage:
    """A folder of pages in the making."""

    def __init__(self, to: Path) -> None:
        self.to = to
        self.sources: set[str] = set()
        self.demo = False
        """Whether the page of the demo's model is among them."""

    def document(self, path: str) -> None:
        text = (ROOT / path).read_text(encoding="utf-8")
        page = self.page_of(path)
        if self.demo:
            chinese = path.endswith(".zh-CN.md")
            text = text.replace(DEMO_HERE, DEMO_LINK[chinese])
        parts = [
            part if part.lstrip().startswith("```") else self.turned(part, path, page)
            for part in FENCE.split(text)
        ]
        self.write(page, "".join(parts))

    def turned(self, text: str, path: str, page: str) -> str:
        """Prose with its links turned to where their targets are in the site."""

        def turn(match: re.Match[str]) -> str:
            target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[1]))
            there = posixpath.relpath(self.place_of(target, path), posixpath.dirname(page) or ".")
            return there + (match[2] or "")

        if page.endswith(".zh.md"):  # where a line ends, browsers would put a space
            text = BROKEN.sub("", text)
        return LINK.sub(turn, LANGUAGES.sub("", text))

    def page_of(self, path: str) -> str:
        """Where a document is in the site."""
        if path in NAMES:
            return NAMES[path]
        return path.removeprefix("docs/").replace(".zh-CN.md", ".zh.md")

    def place_of(self, target: str, linked_from: str) -> str:
        """Where a linked file or folder is in the site; it is put there if it is not yet.

        A page is called by its name without a language: the site shows it in the reader's.
        """
        where = ROOT / target
        if not where.exists():
            raise FileNotFoundError(f"{linked_from} links to {target}, which is not there")
        if target.endswith(".md"):
            return self.page_of(target.replace(".zh-CN.md", ".md"))
        if where.is_dir():
            return self.folder(target)
        if where.suffix in RAW:
            place = target.removeprefix("docs/")
            self.copy(target, place)
            return place
        return self.source(target)

    def source(self, target: str) -> str:
        """A page of a source file."""
        # Without a dot, which the site takes for a language: "guidance.py.md" is no page in "py".
        place = f"source/{NO_WORD.sub('-', target)}.md"
        if target not in self.sources:
            self.sources.add(target)
            text = (ROOT / target).read_text(encoding="utf-8")
            kind = KINDS.get(Path(target).suffix, "text")
            fence = "`" * max(4, *(len(m) + 1 for m in re.findall(r"`+", text) or [""]))
            title = f'{fence}{kind} linenums="1"' if kind == "python" else fence + kind
            self.write(place, f"{UNSEARCHED}# {target}\n\n{title}\n{text}\n{fence}\n")
        return place

    def folder(self, target: str) -> str:
        """A page that lists the source files of a folder."""
        place = f"source/{target.rstrip('/')}/index.md"
        if target not in self.sources:
            self.sources.add(target)
            lines = [
                f"- [{name}]({posixpath.relpath(self.source(name), posixpath.dirname(place))})"
                for name in readable(ROOT / target)
            ]
            self.write(place, f"{UNSEARCHED}# {target}/\n\n" + "\n".join(lines) + "\n")
        return place

    def copy(self, target: str, place: str) -> None:
        to = self.to / place
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / target, to)

    def write(self, place: str, text: str) -> None:
        to = self.to / place
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(text, encoding="utf-8", newline="\n")


UNSEARCHED = "---\nsearch:\n  exclude: true\nhide: [navigation, toc]\n---\n\n"


def readable(folder: Path) -> Iterator[str]:
    """Source files of a folder and of those below it."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (*KINDS, ".txt") and "__pycache__" not in path.parts:
            yield path.relative_to(ROOT).as_posix()
