"""What is printed: nothing that a terminal obeys, and nothing that ends a run by failing."""

from __future__ import annotations

import ast
import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import limner
from limner import console
from limner.commands.examples import HelpWithExamples
from limner.console import one_line, printable, say, say_error

SOURCES = Path(limner.__file__).parent
ESC = "\x1b[2J\x1b]0;owned\x07"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a cat, 一只猫, עברית, 👩‍🚀 é\n\ttwo", "a cat, 一只猫, עברית, 👩‍🚀 é\n\ttwo"),
        (ESC, r"\x1b[2J\x1b]0;owned\x07"),
        ("\0\r\b\x7f", r"\x00\r\x08\x7f"),
        ("\x9b31m\x85", r"\x9b31m\x85"),  # C1: CSI in one byte, and a line end
        ("\u202egnp.exe\u2066\u200f", r"\u202egnp.exe\u2066\u200f"),
        ("\u2028\u2029", r"\u2028\u2029"),
        ("caf\udce9", r"caf\udce9"),
        (r"\x1b is escaped already", r"\x1b is escaped already"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_a_name_cannot_add_a_line() -> None:
    assert one_line("a.png\nerror: all is lost\t\r") == r"a.png\nerror: all is lost\t\r"


def test_every_way_of_printing_escapes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say(ESC)
    say(Path(ESC), err=True)
    say_error(ESC)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    say_error(ESC)
    monkeypatch.delenv("FORCE_COLOR")
    logging.getLogger("limner.x").info(ESC)
    logging.getLogger("limner.x").warning(ESC)
    console._OfLibraries().emit(logging.makeLogRecord({"msg": ESC, "levelname": "WARNING"}))
    console._OfLibraries().emit(logging.makeLogRecord({"msg": "%d", "args": (ESC,)}))
    console._show_warning(ESC, UserWarning, "a.py", 1)
    try:
        raise KeyError(ESC)
    except KeyError as error:
        console._show_exception(KeyError, error, error.__traceback__)
    with pytest.raises(SystemExit):
        HelpWithExamples(prog="limner").parse_args([ESC])
    out, err = capsys.readouterr()
    assert out == 2 * (printable(ESC) + "\n")
    assert err.count(r"\x1b[2J") >= 7
    coloured = err.replace("\x1b[31m", "").replace("\x1b[0m", "")
    assert coloured != err
    assert "\x1b" not in coloured + out
    assert "\x07" not in coloured + out


LOGGING = """
import logging
{set_up}
import limner
logging.getLogger("limner.training").info("%d steps of https://me:secret@host/x", 3)
logging.getLogger("limner.data").warning("odd")
logging.getLogger("limner.data").debug("shapes")
logging.getLogger("elsewhere").warning("theirs")
"""


@pytest.mark.parametrize(
    ("set_up", "out", "err"),
    [
        # A notebook: what Python prints where nobody set anything up, and information.
        ("", ["3 steps of https://host/x"], ["odd", "theirs"]),
        # Whose program has handlers of its own decides by them.
        ("logging.basicConfig(format='%(levelname)s %(message)s')", [],
         ["INFO 3 steps of https://me:secret@host/x", "WARNING odd", "WARNING theirs"]),
        ("logging.basicConfig(level='DEBUG', format='%(message)s')", [],
         ["3 steps of https://me:secret@host/x", "odd", "shapes", "theirs"]),
        ("import limner; logging.basicConfig(level='DEBUG', format='%(message)s')", [],
         ["3 steps of https://me:secret@host/x", "odd", "shapes", "theirs"]),
        ("logging.getLogger('limner').addHandler(logging.NullHandler())", [], ["theirs"]),
        ("logging.getLogger('limner').setLevel('WARNING')", [], ["odd", "theirs"]),
        ("from limner import console; console.set_up_logging('info')",
         ["3 steps of https://host/x"], ["WARNING limner: odd", "WARNING elsewhere: theirs"]),
        ("from limner import console; console.set_up_logging('error')", [],
         ["WARNING elsewhere: theirs"]),
        ("from limner import console; console.set_up_logging('debug')",
         ["3 steps of https://host/x"],
         ["WARNING limner: odd", "DEBUG limner: shapes", "WARNING elsewhere: theirs"]),
        ("from limner import console; console.set_up_logging('info'); console.mute()",
         [], ["WARNING limner: odd", "WARNING elsewhere: theirs"]),
        ("from limner import console; console.set_up_logging('info'); console.inform_on_stderr()",
         [], ["3 steps of https://host/x", "WARNING limner: odd", "WARNING elsewhere: theirs"]),
    ],
)  # fmt: skip
def test_where_what_is_logged_is_printed(set_up: str, out: list[str], err: list[str]) -> None:
    program = LOGGING.format(set_up=set_up)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines() == out
    assert done.stderr.splitlines() == err


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.mark.parametrize("level", ["WARNING", "INFO", "DEBUG"])
def test_information_can_be_kept_where_it_is_not_printed(
    level: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(level, "limner")
    caplog.handler.setLevel(logging.NOTSET)  # a program's own, which wants no more than that level
    logger, kept = logging.getLogger("limner.x"), Kept()
    with console.information_on():
        logger.addHandler(kept)
        logger.info("kept")
        logger.warning("odd")
        logger.removeHandler(kept)
    logger.info("later")
    assert kept.messages == ["kept", "odd"]
    printed = ["kept", "odd", "later"] if level != "WARNING" else ["odd"]
    assert caplog.messages == printed
    out, err = capsys.readouterr()
    assert out == ("" if level == "WARNING" else "kept\nlater\n")
    assert "odd" in err


def test_information_is_on_until_the_last_one_that_keeps_it_ends() -> None:
    logger, kept = logging.getLogger("limner"), Kept()
    before, handlers = logger.level, logger.handlers[:]
    logger.setLevel(logging.WARNING)
    try:
        first, second = console.information_on(), console.information_on()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        logger.addHandler(kept)
        logger.info("kept")
        second.__exit__(None, None, None)
        logger.info("later")
        assert kept.messages == ["kept"]
        assert logger.level == logging.WARNING
    finally:
        logger.setLevel(before)
        logger.removeHandler(kept)
    assert logger.handlers == handlers
    assert not any(handler.filters for handler in handlers)


def test_a_level_that_nobody_set_stays_so() -> None:
    logger = logging.getLogger("limner")
    before = logger.set_to  # type: ignore[attr-defined]
    logger.setLevel(logging.NOTSET)
    logging.disable(logging.INFO)
    try:
        with console.information_on():
            pass
        assert logger.set_to == logging.NOTSET  # type: ignore[attr-defined]
    finally:
        logging.disable(logging.NOTSET)
        logger.setLevel(before)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8", "utf-16"])
def test_what_an_encoding_lacks_does_not_raise(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    say("红 apple \udcff")
    said = raw.getvalue().decode(encoding)
    assert said.endswith(" apple \\udcff\n")


class Broken(io.StringIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error, self.tried = error, 0

    def write(self, text: str) -> int:
        self.tried += 1
        raise self.error


@pytest.mark.parametrize(
    "error", [BrokenPipeError(32, "gone"), OSError(28, "full"), OSError(5, "io"), ValueError("x")]
)
@pytest.mark.parametrize("err", [False, True])
def test_a_write_that_fails_is_the_last(
    error: Exception, err: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, other, later = Broken(error), io.StringIO(), io.StringIO()
    names = ("stderr", "stdout") if err else ("stdout", "stderr")
    monkeypatch.setattr(sys, names[0], broken)
    monkeypatch.setattr(sys, names[1], other)
    say("one", err=err)
    say("two", err=err)
    console.rich_console(err=err).print("three")
    console.finish()
    assert broken.tried == 1
    say("here", err=not err)
    assert other.getvalue() == "here\n"
    monkeypatch.setattr(sys, names[0], later)  # another stream is another try
    say("there", err=err)
    assert later.getvalue() == "there\n"


def test_streams_that_are_closed_or_none_are_not_written_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed = io.TextIOWrapper(io.BytesIO())
    closed.close()
    for stream in (closed, None):
        monkeypatch.setattr(sys, "stdout", stream)
        say("x")
        console.rich_console().print("x")
        assert not console.rich_console().is_terminal
        console.finish()


def test_a_slow_reader_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Broken(BlockingIOError(11, "later"))
    monkeypatch.setattr(sys, "stdout", slow)
    say("one")
    say("two")
    assert slow.tried == 2


PROGRAM = """
import sys
from limner import console
console.set_up()
for i in range(3):
    console.say("x" * 70000)
    console.rich_console().print("y" * 70000)
print("left in the buffer", end="")
console.finish()
sys.exit(75)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX descriptors")
@pytest.mark.parametrize("where", ["pipe", "full", "closed"])
def test_exit_codes_stay_and_python_does_not_complain(where: str) -> None:
    if where == "full" and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    if where == "closed":
        command = ["sh", "-c", 'exec "$0" "$@" >&-', sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, stderr=subprocess.PIPE, timeout=60)
    else:
        if where == "pipe":
            read, out = os.pipe()
            os.close(read)
        else:
            out = os.open("/dev/full", os.O_WRONLY)
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, timeout=60)
        os.close(out)
    assert (done.returncode, done.stderr) == (75, b"")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX descriptors")
def test_help_into_a_pipe_that_nobody_reads_is_no_error() -> None:
    for words in (["--help"], [], ["train", "--help"]):
        read, out = os.pipe()
        os.close(read)
        command = [sys.executable, "-m", "limner", *words]
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, timeout=60)
        os.close(out)
        assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX descriptors")
def test_a_file_that_is_opened_does_not_become_a_stream_that_was_closed(tmp_path: Path) -> None:
    program = (
        "import os; from limner import console; console.set_up()\n"
        f"file = open({str(tmp_path / 'x')!r}, 'w'); assert file.fileno() > 2"
    )
    command = ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', sys.executable, "-c", program]
    assert subprocess.run(command, timeout=60).returncode == 0


OWN = {
    *("print", "Console", "StreamHandler", "basicConfig", "print_exc", "pprint", "warn"),
    *("sys.stdout", "sys.stderr", "sys.__stdout__", "sys.__stderr__"),
}


def prints(tree: ast.AST) -> list[str]:
    """The ways in which a module prints on its own."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in OWN:
            found.append(node.id)
        elif isinstance(node, ast.Attribute) and {node.attr, ast.unparse(node)} & OWN:
            found.append(ast.unparse(node))
    return found


def test_no_module_prints_on_its_own() -> None:
    allowed = {
        "console.py": {"*"},
        "training/monitor/progress.py": {"Console", "self.console.print"},  # of what is escaped
        "commands/examples.py": {"sys.stdout"},  # compared, not written to
        # Of the program in an ONNX folder, which has no Limner.
        "apps/onnx_folder/runner/command.py": {"print", "sys.stderr"},
        "apps/onnx_folder/runner/drawer.py": {"warnings.warn"},
    }
    for path in sorted(SOURCES.rglob("*.py")):
        name = path.relative_to(SOURCES).as_posix()
        may = allowed.get(name, set())
        own = prints(ast.parse(path.read_text("utf-8")))
        assert "*" in may or set(own) <= may, (name, own)


def test_a_module_that_prints_would_be_found() -> None:
    for line in ("print(1)", "f(say=print)", "sys.stderr.write('x')", "accelerator.print(1)"):
        assert prints(ast.parse(line))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("err", [False, True])
def test_progress_is_a_bar_on_a_terminal_that_is_gone_at_the_end(
    err: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    out, other = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stderr" if err else "stdout", out)
    monkeypatch.setattr(sys, "stdout" if err else "stderr", other)
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.progress_shown(logging.getLogger("limner.x"), "pictures drawn", err) as progress:
        for done in (0.5, 3.25, 4):
            now += 1
            progress(done, 4)
    shown = out.getvalue()
    assert "0 of 4 pictures drawn, about 7s left" in shown
    assert "3 of 4 pictures drawn" in shown
    assert "\u2501" in shown
    assert shown.rstrip("\x1b[?25h").endswith("\x1b[2K")  # the line is erased
    assert other.getvalue() == ""


def test_progress_is_a_line_now_and_then_in_a_pipe(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with (
        caplog.at_level(logging.INFO, "limner"),
        console.progress_shown(logging.getLogger("limner.x"), "pictures drawn") as progress,
    ):
        for done in range(1, 41):
            now += 1
            progress(done + 0.5, 41)
    assert [record.message for record in caplog.records] == [
        "15 of 41 pictures drawn, about 25s left",
        "30 of 41 pictures drawn, about 10s left",
    ]


def test_the_main_process_alone_shows_progress(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(console._voice, "muted", True)
    with console.progress_shown(logging.getLogger("limner.x"), "pictures drawn") as progress:
        progress(1, 4)
    assert out.getvalue() == ""
