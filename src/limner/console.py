"""The one place that prints. Names and captions may hold what a terminal would obey, and whoever
reads the output may leave: neither harms a run.

What people should know is logged, `logging.getLogger(__name__).info(...)`, and printed here as a
bare line; `say` is for what a command was asked for. Warnings, tracebacks, and rich's displays (by
`rich_console`) go through here, too.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import re
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from limner.messages import escape
from limner.redaction import redact_urls

if TYPE_CHECKING:
    from rich.console import Console

_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and line feed
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # they reorder what stands beside them
    "\u2028\u2029"  # other line ends
    "\ud800-\udfff]"  # no encoding has them
)
_given_up: dict[bool, Any] = {}
"""The stream of stdout (False) or stderr (True) that a write failed on."""


def printable(text: str) -> str:
    """The text with control characters, bidirectional controls, and lone surrogates escaped, as in
    `\\x1b[31m`. Line feeds and tabs stay. Applied twice, it changes nothing more."""
    return _OBEYED.sub(lambda found: escape(found[0]), text)


def one_line(text: str) -> str:
    """As `printable`, with line feeds and tabs escaped, too: a file name cannot add a line."""
    return printable(text).replace("\n", r"\n").replace("\t", r"\t")


def say(text: object = "", *, err: bool = False, end: str = "\n") -> None:
    """Print a line, `printable`, to stdout or to stderr, and flush it.

    Never raises: once a stream cannot be written to (its reader has gone, the disk is full, it is
    closed), nothing more is printed to it.
    """
    _write(err, printable(str(text)) + end)


def say_error(text: str) -> None:
    """As `say`, on stderr and without what URLs hide (as log records, warnings, and tracebacks);
    red on a terminal, unless NO_COLOR or TERM=dumb say otherwise."""
    from rich.text import Text

    text = redact_urls(text)
    console = rich_console(err=True)
    if console.is_terminal and console.color_system is not None:
        console.print(Text(printable(text), style="red"), soft_wrap=True)
    else:
        say(text, err=True)


def rich_console(*, err: bool = False, **options: Any) -> Console:
    """A console of rich that is written to as `say` writes. What it prints is escaped by the
    caller, as its own colours are control characters."""
    from rich.console import Console

    return Console(file=_Writer(err), highlight=False, **options)  # type: ignore[arg-type]


def set_up() -> None:
    """For a program of its own, first: warnings and tracebacks are printed by `say`, too."""
    for number in (0, 1, 2):  # one that is closed would be given to the next file that is opened
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Prompts may hold letters that the code page of a Windows console does not have.
            stream.reconfigure(errors="replace")
    warnings.showwarning = _show_warning
    sys.excepthook = _show_exception


def set_up_logging(level: str) -> None:
    """Log records are printed by `say`: Limner's own from this level on, warnings of libraries."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", handlers=[_OfLibraries()])
    logging.getLogger().setLevel(logging.WARNING)
    _voice.setFormatter(logging.Formatter("%(levelname)s limner: %(message)s"))
    _voice.setLevel(level.upper())
    _voice.commanded, _voice.muted, _voice.stderr = True, False, False
    # Here alone: libraries would drown what is told at debug level. And at most INFO: a run keeps
    # that also where it is not printed.
    _limner.setLevel(min(_voice.level, logging.INFO))


def mute(muted: bool = True) -> None:
    """Whether this process prints no information, as another one of the run prints the same."""
    _voice.muted = muted


def inform_on_stderr() -> None:
    """For a command whose stdout is what it found."""
    _voice.stderr = True


@contextlib.contextmanager
def information_on() -> Iterator[None]:
    """Information is logged, for handlers that are added meanwhile to keep it, whatever the level
    of `limner`; handlers that were there before, such as those of a program, get nothing more than
    that level. Of several that overlap the last one to end puts the level back."""
    global _informing
    with _changing_level:
        if not _informing:
            _informed.enter_context(_information_is_logged())
        _informing += 1
    try:
        yield
    finally:
        with _changing_level:
            _informing -= 1
            if not _informing:
                _informed.close()


_informing, _informed, _changing_level = 0, contextlib.ExitStack(), threading.Lock()


@contextlib.contextmanager
def _information_is_logged() -> Iterator[None]:
    level = _limner.getEffectiveLevel()
    if level <= logging.INFO:
        yield
        return

    def is_wanted(record: logging.LogRecord) -> bool:
        return record.levelno >= level or record.name.partition(".")[0] != "limner"

    handlers = [*_limner.handlers, *logging.getLogger().handlers]
    for handler in handlers:
        handler.addFilter(is_wanted)
    _limner.setLevel(logging.INFO)
    try:
        yield
    finally:
        _limner.setLevel(level)
        for handler in handlers:
            handler.removeFilter(is_wanted)


def finish() -> None:
    """Write what libraries left in the buffers, so that Python has nothing to fail at when it
    exits. What follows in the same process is informed on stdout again."""
    _voice.stderr = False
    for err in (False, True):
        _write(err, "")


def _write(err: bool, text: str) -> None:
    _write_to(sys.stderr if err else sys.stdout, err, text)


def _write_to(stream: Any, err: bool, text: str) -> None:
    # Without a lock: rich, whose live line takes what is printed, has one of its own.
    if stream is None or _given_up.get(err) is stream:
        return
    try:
        if text:
            stream.write(_encodable(text, stream))
        stream.flush()
    except BlockingIOError:
        pass  # a reader that is slow for now
    except (OSError, ValueError):  # ValueError: it is closed
        _give_up(err, stream)


def _encodable(text: str, stream: Any) -> str:
    encoding = getattr(stream, "encoding", None)
    if not isinstance(encoding, str) or encoding.lower() in ("utf-8", "utf8"):
        return text
    try:
        return text.encode(encoding, errors="replace").decode(encoding)
    except LookupError:
        return text


def _give_up(err: bool, stream: Any) -> None:
    """Print no more to it. What is still in its buffer goes to the null device: Python would fail
    on it at exit, with a complaint and exit code 120."""
    _given_up[err] = stream
    if not isinstance(stream, io.TextIOWrapper):
        return  # a notebook's, or a test's
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
    except (OSError, ValueError):
        pass  # it has no descriptor


class _Writer(io.TextIOBase):
    """stdout or stderr for a library that writes to a file."""

    def __init__(self, err: bool) -> None:
        self._err = err

    @property
    def _stream(self) -> Any:
        stream = sys.stderr if self._err else sys.stdout
        return getattr(stream, "rich_proxied_file", stream)  # while rich shows a live line

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        _write_to(self._stream, self._err, text)
        return len(text)

    def flush(self) -> None:
        self.write("")

    def isatty(self) -> bool:
        try:
            return bool(self._stream.isatty())
        except (AttributeError, ValueError):  # none, or closed
            return False

    def fileno(self) -> int:
        return int(self._stream.fileno())


class _OfLibraries(logging.Handler):
    """Prints what libraries log, on stderr."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.name.partition(".")[0] != "limner"

    def emit(self, record: logging.LogRecord) -> None:
        say(redact_urls(_text(self, record)), err=True)


class _Voice(logging.Handler):
    """Prints what Limner logs: information as a bare line on stdout, all else on stderr.

    It is there from the start, so that a notebook shows how a run goes, and gives way, as Python's
    `logging.lastResort` does, to handlers that a program set up itself.
    """

    commanded = False
    """By the command line, which prints whatever other handlers there are."""
    muted = stderr = False
    """Of information: nothing of it is printed; it is printed on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        informs = logging.DEBUG < record.levelno < logging.WARNING
        if (informs and self.muted) or not (self.commanded or _no_other_handlers()):
            return
        text = _text(_BARE if informs else self, record)
        say(redact_urls(text), err=self.stderr or not informs)


_BARE = logging.Formatter()


def _text(by: logging.Handler | logging.Formatter, record: logging.LogRecord) -> str:
    try:
        return by.format(record)
    except Exception:  # a record whose arguments do not fit
        return f"{record.levelname} {record.name}: {record.msg}"


def _no_other_handlers() -> bool:
    others = logging.getLogger().handlers if _limner.propagate else []
    return all(type(h).__module__.startswith("limner.") for h in (*_limner.handlers, *others))


class _Limner(logging.Logger):
    """The logger `limner`. Where nobody set its level it is INFO, or the root logger's if that is
    lower; Python would take the root logger's, which is WARNING."""

    set_to: int

    @property
    def level(self) -> int:
        return self.set_to or min(logging.getLogger().level, logging.INFO) or logging.INFO

    @level.setter
    def level(self, level: int) -> None:
        self.set_to = level


_limner, _voice = logging.getLogger("limner"), _Voice()
_limner.__class__, _limner.set_to = _Limner, _limner.level  # type: ignore[attr-defined]
_limner.addHandler(_voice)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    text = warnings.formatwarning(message, category, filename, lineno, line)
    say(redact_urls(text), err=True, end="")


def _show_exception(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    say(redact_urls(text), err=True, end="")


def format_duration(seconds: float | None) -> str:
    """42 -> "42s", 252 -> "4m12s", 3780 -> "1h03m", 187200 -> "2d04h"; unknown -> "?"."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    hours = round(seconds / 3600)
    return f"{hours // 24}d{hours % 24:02d}h"


SAY_EVERY = 15.0  # seconds
REDRAW_EVERY = 0.2


def progress_lines(
    log: logging.Logger, what: str, every: float = SAY_EVERY
) -> Callable[[float, int], None]:
    """A function of (done, total) that logs the progress at most every so many seconds.

    Args:
        what: "pictures drawn".
    """
    began = said = time.monotonic()

    def progress(done: float, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if done and done < total and now - said >= every:
            said = now
            log.info(_progress_in_words(done, total, what, now - began))

    return progress


@contextlib.contextmanager
def progress_shown(
    log: logging.Logger, what: str, err: bool = False
) -> Iterator[Callable[[float, int], None]]:
    """The same on a terminal as a bar, which is gone at the end; elsewhere as `progress_lines`.

    Args:
        what: "pictures drawn".
        err: the bar is drawn on stderr.
    """
    console = rich_console(err=err)
    screen = console.is_terminal and not console.is_dumb_terminal and not console.is_jupyter
    if not screen or _voice.muted or _voice.level > logging.INFO:
        yield progress_lines(log, what, SAY_EVERY)
        return
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    began, shown = time.monotonic(), -math.inf
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def progress(done: float, total: int) -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown < REDRAW_EVERY:
                return
            shown = now
            words = _progress_in_words(done, total, what, now - began)
            line = Table.grid(padding=(0, 1, 0, 0), expand=True)
            line.add_column(no_wrap=True, min_width=min(len(words), console.width))
            line.add_column(ratio=1)
            line.add_row(words, ProgressBar(total=total, completed=done, width=None))
            live.update(line, refresh=True)

        yield progress


def _progress_in_words(done: float, total: int, what: str, seconds: float) -> str:
    left = f", about {format_duration(seconds / done * (total - done))} left" if done else ""
    return f"{int(done):,} of {total:,} {what}{left}"
