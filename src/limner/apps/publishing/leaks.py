"""The final check before an upload: does it contain secrets, or names of this machine?

Every file is searched, in all common encodings, for paths and URLs of the run, passwords and
signatures in them, tokens in the environment, and names of folders and of the user. If something is
found, nothing is uploaded.
"""

from __future__ import annotations

import base64
import binascii
import functools
import getpass
import gzip
import html
import io
import json
import os
import re
import socket
import tarfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from PIL import Image

from limner.checkpoint.manifest import NAME
from limner.errors import LimnerError
from limner.redaction import is_hub_id

LEAST, LEAST_ANYWHERE = 3, 8
"""Minimum length of a name searched as a word, and of a secret searched in all bytes: shorter ones
would match by chance."""
AT_ONCE = 2**26  # bytes of a large file
WHOLE = 2**28  # maximum size of a file that is also read as text, in bytes
DEEPEST = 3  # maximum nesting of archives
MOST_TOLD = 10
NOT_OF_THE_RUN = frozenset(("tokenizer", "text_encoder", "vae", "transformer", "scheduler"))
"""Folders with vocabularies and nothing from the run: not searched for single words."""
NOT_WORDS = frozenset(("tokenizer", "words", "modelspec.thumbnail"))
"""Entries in the header of a weights file that are not searched for words: vocabularies (the words
of private captions are not there), and a picture."""
EVERYWHERE = frozenset(
    ("home", "users", "mnt", "tmp", "var", "srv", "opt", "media", "volumes", "workspace")
)
"""Common folder names, which reveal nothing."""
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|ACCESS_?KEY|CREDENTIAL|PRIVATE_?KEY", re.I)
_FOLD = re.compile(r"[ \t]*\\?\r?\n[ \t]*")
_DATA_URI = re.compile(r"data:[\w/+.-]*;base64,([A-Za-z0-9+/=]+)")
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})|\\(.)")


@dataclass(frozen=True)
class Private:
    """A text that must not be published."""

    text: str
    what: str
    """A description, such as `the password in data.dataset_path`."""
    anywhere: bool
    """Whether it is searched in all bytes, or only as a word in files about the run."""
    secret: bool = False
    """Whether it is omitted from messages."""


@dataclass(frozen=True)
class Leak:
    """A private text, and where it was found."""

    file: str
    line: int | None
    private: Private

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}, line {self.line}"
        shown = "" if self.private.secret else f" {self.private.text!r}"
        return f"{where}: {self.private.what}{shown}"


def refuse_leaks(
    folder: Path,
    private: Sequence[Private],
    public: Iterable[str] = (),
    said: Mapping[str, str] | None = None,
) -> None:
    """Search all files in a folder, and their names.

    Args:
        private: what must not be published (see `private_of`).
        public: texts that are meant to be published: prompts, and the publisher's options. A word
            in them is not a leak; a path, a URL, or a secret always is.
        said: by file, the text that is searched for words in its place, where the rest of it are
            weights and a vocabulary.

    Raises:
        LimnerError: something was found; the message says where, without secrets.
    """
    if not (found := find_leaks(folder, private, public, said)):
        return
    listed = "".join(f"\n  - {leak}" for leak in found[:MOST_TOLD])
    more = f"\n  ... and {len(found) - MOST_TOLD:,} more" if len(found) > MOST_TOLD else ""
    raise LimnerError(
        f"nothing was published, because it would reveal private information:{listed}{more}\n"
        "remove it from the files of the run, or rename what it refers to; words in --data_name "
        "and --repo count as public"
    )


def find_leaks(
    folder: Path,
    private: Sequence[Private],
    public: Iterable[str] = (),
    said: Mapping[str, str] | None = None,
) -> list[Leak]:
    """The leaks that `refuse_leaks` reports, without duplicates, paths before words."""
    said = said or {}
    search = _Search(private, public)
    leaks: list[Leak] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        leaks += search.text(name, name, True)
        if name in said:
            leaks += search.large(path, name)
            leaks += search.text(name, said[name], True)
        elif path.is_file():
            leaks += search.file(path, name)
    return sorted(dict.fromkeys(leaks), key=lambda leak: not leak.private.anywhere)


# ---- what is private ---------------------------------------------------------------------------


def private_of(
    places: Mapping[str, Sequence[str]], environment: Mapping[str, str] | None = None
) -> list[Private]:
    """The private texts of a run.

    Args:
        places: maps a description to paths, URLs, and Hub ids: `{"data.dataset_path": [...]}`.
        environment: environment variables; None: those of this process.
    """
    environment = os.environ if environment is None else environment
    found: list[Private] = []
    for what, several in places.items():
        for place in several:
            if "://" in place:
                found += _of_url(place, what)
            elif not is_hub_id(place):
                found += _of_path(place, what)
    found += _of_machine()
    for name, value in environment.items():
        if "://" in value:
            found += _secrets_of_url(value, name)
        elif _SECRET.search(name) and len(value) >= LEAST_ANYWHERE and not _is_path(value):
            found.append(Private(value, f"the value of {name}", _is_rare(value), True))
    with suppress(ImportError):
        from huggingface_hub import get_token

        if token := get_token():
            found.append(Private(token, "the Hub token", True, True))
    return list({one.text: one for one in reversed(found)}.values())[::-1]


def _of_path(place: str, what: str) -> Iterator[Private]:
    absolute = os.path.abspath(os.path.expanduser(place))
    for path in dict.fromkeys((absolute, os.path.realpath(absolute))):
        parts = Path(path).parts[1:]
        if len(parts) > 1:
            for spelled in {path, path.replace("\\", "/")}:
                yield Private(spelled, f"the path of {what}", True)
        yield from _words(parts, f"a folder of {what}")
    relative = place.removeprefix("./").strip("/\\")
    if _is_path(relative):
        yield Private(relative, f"the path of {what}", False)


def _of_url(url: str, what: str) -> Iterator[Private]:
    yield Private(url, f"the address of {what}", True, True)
    yield from _secrets_of_url(url, what)
    with suppress(ValueError):
        split = urlsplit(url.rpartition("::")[2])
        host, path = split.hostname or "", unquote(split.path)
        yield from _words([host, *path.split("/")], f"a name in the address of {what}")


def _secrets_of_url(url: str, what: str) -> Iterator[Private]:
    try:
        split = urlsplit(url.rpartition("::")[2])  # of `simplecache::https://...`
        user, password = split.username or "", split.password or ""
    except ValueError:
        return
    if password:
        yield Private(split.netloc.rpartition("@")[0], f"user and password in {what}", True, True)
        for spelled in {password, unquote(password)}:
            if len(spelled) >= LEAST:
                yield Private(spelled, f"the password in {what}", _is_rare(spelled), True)
    for spelled in {user, unquote(user)}:
        if len(spelled) >= LEAST:
            yield Private(spelled, f"the user in {what}", False)
    for part in (split.query, split.fragment):
        if len(part) >= LEAST_ANYWHERE:
            yield Private(part, f"the query of {what}", True, True)
        for key, value in parse_qsl(part):
            if _is_rare(value):
                yield Private(value, f"{key} in {what}", True, True)
            for pair in {f"{key}={value}", f"{key}={quote(value, safe='')}"}:
                yield Private(pair, f"{key} in {what}", len(pair) >= LEAST_ANYWHERE, True)


def _of_machine() -> Iterator[Private]:
    home = str(Path.home())
    if len(Path(home).parts) > 1:
        for spelled in {home, home.replace("\\", "/")}:
            yield Private(f"{spelled}{'/' if '/' in spelled else os.sep}", "your home folder", True)
    with suppress(OSError, KeyError, ImportError):
        yield from _words([getpass.getuser()], "your user name")
    yield from _words([socket.gethostname()], "this machine's name")


def _words(names: Iterable[str], what: str) -> Iterator[Private]:
    for name in names:
        for word in dict.fromkeys((name, name.partition(".")[0])):
            known = word.lower() in EVERYWHERE or word.isdigit() or NAME.fullmatch(word)
            if len(word) >= LEAST and not known:
                yield Private(word, what, False)


def _is_rare(secret: str) -> bool:
    """Whether it can be searched in all bytes; plain words would match in a vocabulary."""
    return len(secret) >= LEAST_ANYWHERE and not secret.isalpha()


def _is_path(text: str) -> bool:
    return "/" in text or "\\" in text


@functools.cache
def _own_text() -> str:
    folder = Path(__file__).parents[2]
    return "\n".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.py")).casefold()


def _is_ordinary(word: str) -> bool:
    """Whether Limner's own source contains the word: outputs, data, ... reveal nothing."""
    return re.search(rf"(?<!\w){re.escape(word.casefold())}(?!\w)", _own_text()) is not None


# ---- search ------------------------------------------------------------------------------------


class _Search:
    def __init__(self, private: Sequence[Private], public: Iterable[str]) -> None:
        self.anywhere = [one for one in private if one.anywhere]
        self.words = [one for one in private if not one.anywhere]
        said = {text for each in public for text in (each, " ".join(each.split())) if text.strip()}
        longest_first = sorted(said, key=len, reverse=True)
        self.public = [re.compile(rf"(?<!\w){re.escape(text)}(?!\w)") for text in longest_first]
        self.bytes = [
            (spelled.encode(code, "surrogatepass"), one)
            for one in self.anywhere
            for spelled in _spellings(one.text)
            for code in ("utf-8", "utf-16-le")
        ]

    def file(self, path: Path, name: str) -> Iterator[Leak]:
        tells = name.partition("/")[0] not in NOT_OF_THE_RUN and path.suffix != ".py"
        if path.stat().st_size > WHOLE or path.suffix == ".safetensors":
            yield from self.large(path, name)
            if path.suffix == ".safetensors":
                for key, value in _header(path).items():
                    words = tells and key not in NOT_WORDS
                    for leak in self.text(f"{name} (metadata {key})", value, words):
                        yield Leak(leak.file, None, leak.private)
            return
        yield from self.data(name, path.read_bytes(), tells)

    def large(self, path: Path, name: str) -> Iterator[Leak]:
        overlap = max((len(spelled) for spelled, _ in self.bytes), default=0)
        with path.open("rb") as file:
            before = b""
            while block := file.read(AT_ONCE):
                yield from self.raw(name, before + block)
                before = block[-overlap:] if overlap else b""

    def raw(self, name: str, data: bytes) -> Iterator[Leak]:
        for spelled, one in self.bytes:
            if spelled in data:
                yield Leak(name, None, one)

    def data(self, name: str, data: bytes, tells: bool, depth: int = 0) -> Iterator[Leak]:
        """Search bytes: raw, as text, and inside archives and images."""
        text = _text_of(data)
        if text is None:
            yield from self.raw(name, data)
        else:
            yield from self.text(name, text, tells)
            for found in _DATA_URI.finditer(text):
                with suppress(binascii.Error):
                    yield from self.data(name, base64.b64decode(found[1]), tells, depth + 1)
        if depth >= DEEPEST:
            return
        for where, inner in _packed(data):
            inside = f"{name} ({where})"
            yield from self.text(inside, where, tells)
            yield from self.data(inside, inner, tells, depth + 1)

    def text(self, name: str, text: str, tells: bool) -> Iterator[Leak]:
        found: dict[Private, Leak] = {}
        for view in dict.fromkeys(_views(text)):
            self.look(name, view, tells, found)
            if "\n" in view and " " in view:  # YAML and others fold long lines at spaces
                folded = dict[Private, Leak]()
                self.look(name, _FOLD.sub(" ", view), tells, folded)
                for one in folded:
                    found.setdefault(one, Leak(name, None, one))
        yield from found.values()

    def look(self, name: str, view: str, tells: bool, found: dict[Private, Leak]) -> None:
        for one in self.anywhere:
            if one.text in view:
                found.setdefault(one, Leak(name, _line(view, view.index(one.text)), one))
        if not tells or not self.words:
            return
        for said in self.public:
            view = said.sub(lambda hit: "\n" * hit[0].count("\n") or " ", view)
        view = view.casefold()
        for one in self.words:
            word = one.text.casefold()
            if word not in view or one in found:
                continue
            hit = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", view)
            if hit and (one.secret or not _is_ordinary(word)):
                found[one] = Leak(name, _line(view, hit.start()), one)


def _spellings(text: str) -> set[str]:
    """Its encodings in JSON, HTML, and URLs."""
    return {
        text,
        json.dumps(text)[1:-1],
        json.dumps(text, ensure_ascii=False)[1:-1],
        text.replace("/", r"\/"),
        html.escape(text),
        quote(text),
        quote(text, safe=""),
    }


def _views(text: str) -> Iterator[str]:
    """The text, and its versions with HTML entities, escapes, and percent-encoding decoded."""
    yield text
    every = text
    for read in (html.unescape, _unescaped, unquote):
        yield read(text)
        every = read(every)
    yield every
    yield unquote(_unescaped(html.unescape(every)))


def _unescaped(text: str) -> str:
    r"""Decode the JSON escapes `\/`, `\\`, and `\u00e9`; line breaks are preserved."""
    if "\\" not in text:
        return text

    def read(found: re.Match[str]) -> str:
        if found[1]:
            return chr(int(found[1], 16))
        return {"n": "\n", "t": "\t"}.get(found[2], found[2])

    plain = _ESCAPED.sub(read, text)
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _text_of(data: bytes) -> str | None:
    for code in ("utf-16",) if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8",):
        with suppress(UnicodeDecodeError):
            text = data.decode(code)
            return None if "\0" in text else text
    return None


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _header(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def _packed(data: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the metadata of an image, or of the members of an archive."""
    if data[:4] in (b"PK\3\4", b"PK\5\6"):
        damaged = zipfile.BadZipFile, RuntimeError, OSError, NotImplementedError
        with suppress(*damaged), zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield "comment", archive.comment
            for member in archive.infolist():
                if member.file_size <= WHOLE:
                    yield member.filename, archive.read(member)
    elif data[:2] == b"\x1f\x8b":
        with suppress(OSError, EOFError), gzip.open(io.BytesIO(data)) as unpacked:
            yield "unpacked", unpacked.read(WHOLE)
    elif data[257:262] == b"ustar":
        with suppress(tarfile.TarError, OSError), tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for entry in tar:
                if entry.isfile() and entry.size <= WHOLE and (file := tar.extractfile(entry)):
                    yield entry.name, file.read()
    elif data[:4] == b"\x89PNG" or data[:2] == b"\xff\xd8" or data[:4] == b"RIFF":
        yield from _beside_pixels(data)


def _beside_pixels(data: bytes) -> Iterator[tuple[str, bytes]]:
    with suppress(Exception), warnings.catch_warnings():  # damaged images can raise anything
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            image.load()  # text chunks may follow the pixels
            known = {**image.info, **getattr(image, "text", {})}
            for key, value in known.items():
                content = (
                    value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
                )
                yield str(key), content
            for tag, value in image.getexif().items():
                content = (
                    value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
                )
                yield f"EXIF {tag}", content
