"""List and read local or remote files by path or URL, and detect changes.

What is far away is read through fsspec (https://, s3://, hf://, ...). A network that fails is asked
again for minutes; then the run ends, and says so, rather than learn from something else.
"""

from __future__ import annotations

import glob
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from limner.errors import LimnerError
from limner.redaction import redact_urls

WAITS = (1, 2, 5, 10, 20, 30, 60, 60, 60, 60)
"""Seconds between tries to reach what is far away: five minutes in all."""
BLOCK = 8 * 2**20
"""Bytes that are asked for at once where a file is read from its beginning to its end."""
AT_ONCE = 8
"""Files that are looked at together."""
MOST_FILES = 1_000_000
NEEDS = 'run: pip install "limner[data]" (or pip install "fsspec[http]")'

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_VERSIONS = ("ETag", "etag", "blob_id", "mtime", "LastModified", "last_modified", "Last-Modified")
"""What file systems call that which changes when a file does; the first that is there is used."""
log = logging.getLogger(__name__)
T = TypeVar("T")


class Unreachable(LimnerError):
    """A file that cannot be read now, and may be later: no fault of a picture."""


@dataclass(frozen=True)
class Place:
    """A file.

    Attributes:
        url: a path of this machine, or a URL.
        size: bytes.
        version: changes when the file does (its time of change, or its ETag).
    """

    url: str
    size: int
    version: str

    @property
    def name(self) -> str:
        return self.url.split("?")[0].replace("\\", "/").rstrip("/").rpartition("/")[2]

    @property
    def is_local(self) -> bool:
        return not is_url(self.url)


def is_url(path: str) -> bool:
    return "://" in path


def of_shards(path: str) -> str | None:
    """The format (a value of `data.format`) that a URL or a pattern says by its ending; None: it is
    neither, or says nothing."""
    if not is_url(path) and (
        os.path.exists(os.path.expanduser(path)) or not any(letter in path for letter in "{*?[")
    ):
        return None
    name = path.split("?")[0].lower() if is_url(path) else path.lower()
    if name.endswith(".parquet"):
        return "parquet"
    if ".tar" in name or name.endswith((".tgz", ".txz", ".tbz2")):
        return "webdataset"
    raise LimnerError(
        f"data.dataset_path: the format of {path} is unknown; end it with *.tar or *.parquet, or "
        "set data.format to webdataset or parquet"
    )


def find(path: str | Sequence[str], endings: tuple[str, ...]) -> list[Place]:
    """The files that a path, URL, or pattern (or each of several) stands for, by their names.

    `{000..012}` counts, `{a,b}` lists, `*` and `?` match names; a folder stands for all files in it
    with one of the endings. Raises LimnerError, naming the files of a list that are not there.
    """
    urls: list[str] = []
    paths = [path] if isinstance(path, str) else path
    for one in (one for each in paths for one in expanded(each)):
        urls += _local(one, endings) if not is_url(one) else _far(one, endings)
    if not urls:
        raise LimnerError(
            f"data.dataset_path: no file that ends with {' or '.join(endings)} is at {path}"
        )
    with ThreadPoolExecutor(AT_ONCE) as threads:
        found = list(threads.map(look_at, urls))
    if missing := [url for url, place in zip(urls, found, strict=True) if place is None]:
        listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise LimnerError(
            f"data.dataset_path: {len(missing):,} of {len(urls):,} files were not found: {listed}"
        )
    return [place for place in found if place is not None]


def expanded(pattern: str) -> Iterator[str]:
    """The braces of a pattern, as a shell takes them: "{08..10}" is 08, 09, 10; "{a,b}" a, b."""
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    if counted := _RANGE.fullmatch(found[1]):
        first, last = counted.groups()
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        if not 0 <= int(last) - int(first) < MOST_FILES:
            raise LimnerError(
                f"data.dataset_path: {{{found[1]}}} counts from {first} to {last}; the first must "
                f"be the smaller, and the files at most {MOST_FILES:,}"
            )
        words = [str(n).zfill(width) for n in range(int(first), int(last) + 1)]
    elif "," in found[1]:
        words = found[1].split(",")
    else:
        raise LimnerError(
            f"data.dataset_path: {{{found[1]}}} in {pattern} is neither a count such as "
            "{000..012} nor a list such as {a,b}"
        )
    for word in words:
        yield from expanded(pattern[: found.start()] + word + pattern[found.end() :])


def _local(path: str, endings: tuple[str, ...]) -> list[str]:
    path = os.path.abspath(os.path.expanduser(path))
    if os.path.isdir(path):
        names = sorted(name for name in os.listdir(path) if not name.startswith("."))
        return [os.path.join(path, n) for n in names if n.lower().endswith(endings)]
    if os.path.exists(path) or not glob.has_magic(path):
        return [path]
    return sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))


def _far(url: str, endings: tuple[str, ...]) -> list[str]:
    if "*" not in url and url.split("?")[0].lower().endswith(endings):
        return [url]
    files, path = file_system(url)
    if "*" not in url:
        path = path.rstrip("/") + "/*"
    found = patiently(url, lambda: files.glob(path))
    return [files.unstrip_protocol(p) for p in sorted(found) if p.lower().endswith(endings)]


def look_at(url: str) -> Place | None:
    """Size and version of a file; None if it is not there."""
    if not is_url(url):
        try:
            found = os.stat(url)
        except FileNotFoundError:
            return None
        return Place(url, found.st_size, str(found.st_mtime_ns))
    files, path = file_system(url)
    try:
        about: dict[str, Any] = patiently(url, lambda: files.info(path))
    except FileNotFoundError:
        return None
    if about.get("size") is None:
        raise LimnerError(f"{url}: the server does not report the file's size; download the file")
    version = next((about[name] for name in _VERSIONS if about.get(name)), "")
    return Place(url, int(about["size"]), str(version))


def open_place(place: Place) -> BinaryIO:
    """A file to read from, that can be sought in; of one far away, blocks are asked for ahead."""
    if place.is_local:
        return open(place.url, "rb")
    files, path = file_system(place.url)
    # Its own waiting is left out here: whoever reads begins again from the start of the file.
    opened: Any = files.open(path, "rb", block_size=BLOCK, cache_type="readahead")
    if not opened.seekable():
        raise LimnerError(_no_ranges(place.url))
    return opened


def read_range(place: Place, start: int, end: int) -> bytes:
    """Bytes `start` to `end` of a file. Raises Unreachable after minutes of trying."""
    if place.is_local:
        with open(place.url, "rb") as file:
            file.seek(start)
            found = file.read(end - start)
    else:
        files, path = file_system(place.url)
        found = patiently(place.url, lambda: files.cat_file(path, start=start, end=end))
    if len(found) != end - start:
        if len(found) >= place.size > end - start:
            raise LimnerError(_no_ranges(place.url))
        raise LimnerError(changed(place))
    return found


def changed(place: Place) -> str:
    return (
        f"{place.url} has changed since this run began and no longer matches its index; start the "
        "command again"
    )


def _no_ranges(url: str) -> str:
    return (
        f"{url}: the server does not support HTTP range requests, which streaming needs; download "
        "the files, and use their folder"
    )


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it."""
    try:
        import fsspec
    except ImportError:
        raise LimnerError(f"{url}: to read it, {NEEDS}") from None
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # a protocol whose package is missing, or unknown
        raise LimnerError(f"{url} cannot be read: {error}") from None


def patiently(url: str, ask: Callable[[], T]) -> T:
    """What `ask` returns; it is asked again where the network fails.

    Raises:
        FileNotFoundError: the file is not there.
        LimnerError: it may not be read.
        Unreachable: it could not be reached for minutes.
    """
    for wait in (*WAITS, None):
        try:
            return ask()
        except (FileNotFoundError, LimnerError):
            raise
        except PermissionError as error:
            raise LimnerError(f"no permission to read {url}: {error}") from None
        except Exception as error:  # each file system has exceptions of its own
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if getattr(error, "status", 0) in (400, 401, 403, 405, 410, 416, 451):
                raise LimnerError(f"{url} cannot be read ({said}); check the address") from None
            if wait is None:
                raise Unreachable(
                    f"{url} could not be reached for {sum(WAITS) / 60:.0f} minutes ({said}). Check "
                    "the network; the same command resumes from the last checkpoint."
                ) from None
            told = redact_urls(url), redact_urls(said)
            log.warning("%s could not be reached (%s); retrying in %d s", *told, wait)
            time.sleep(wait)
    raise AssertionError
