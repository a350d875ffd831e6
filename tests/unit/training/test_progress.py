"""What a training run shows: one live line on a terminal, sparse plain lines elsewhere."""

from __future__ import annotations

import io
import logging
import math
import re
import sys

import pytest
from rich.console import Console

from limner.console import format_duration, rich_console
from limner.training.monitor.progress import Progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def plain_console() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=False, width=80), out


def train(progress: Progress, clock: Clock, steps: int, total: int | None) -> None:
    """One step a second, 32 pictures each."""
    for step in range(1, steps + 1):
        clock.now += 1
        left = float(total - step) if total else None
        progress.update(step, total, 32 * step, 32.0, 1 / step, None if step < 5 else 0.5234, left)


def test_the_plain_line_tells_all() -> None:
    console, out = plain_console()
    with Progress(console=console) as progress:
        progress.update(120, 700, 3840, 63.0, 0.412, 0.523, 252.0)
    assert out.getvalue().rstrip("\n") == (
        "step    120/700 | 3,840 images | 63.0 images/s | loss 0.412 | held-out 0.523 | 4m12s left"
    )


def test_plain_lines_come_at_most_every_plain_every_seconds_and_the_last_step_always() -> None:
    console, out = plain_console()
    clock = Clock()
    with Progress(console=console, plain_every=15, clock=clock) as progress:
        train(progress, clock, steps=40, total=40)
    shown = [int(step) for step in re.findall(r"step +(\d+)/40", out.getvalue())]
    assert shown == [1, 16, 31, 40]


def test_the_last_figures_of_a_run_that_time_or_an_error_ended_are_shown() -> None:
    console, out = plain_console()
    clock = Clock()

    def interrupted() -> None:
        with Progress(console=console, clock=clock) as progress:
            train(progress, clock, steps=12, total=None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].split(" | ") == ["step      1", "32 images", "32.0 images/s", "loss 1.000"]
    assert lines[1].startswith("step     12 | 384 images")


def test_what_is_told_stands_above_the_live_line_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    told = "[red]saved[/red] :apple: " + "a word " * 20 + "红苹果"  # no markup, no line breaks
    with Progress() as progress:
        assert progress.live is not None
        progress.update(1, 2, 32, 1.0, 0.5, 0.5, 1.0)
        logging.getLogger("limner.training").info(told)
        progress.update(2, 2, 64, 1.0, 0.5, 0.5, 0.0)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n").split("\n")
    assert lines.count(told) == 1
    assert "step 1/2" in "".join(lines[: lines.index(told)])
    assert "step 2/2" in lines[-2]


@pytest.mark.parametrize("live", [True, False])
def test_a_console_that_lacks_the_letters_does_not_end_the_run(
    live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", out)
    with Progress(console=rich_console(force_terminal=live, width=100)) as progress:
        progress.update(1, 2, 32, 1.0, 0.5, 0.5, 1.0)
        logging.getLogger("limner.training").info("preview of 红苹果")
    out.flush()
    assert b"preview of ???" in raw.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_live_line_fits_its_terminal(width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, color_system=None)
    clock = Clock()
    with Progress(console=console, clock=clock) as progress:
        train(progress, clock, steps=20, total=40)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", out.getvalue()).replace("\r", "\n").split("\n")
    shown = [line for line in lines if "step" in line]
    assert len(shown) >= 20
    assert max(map(len, shown)) <= width
    assert "step 20/40" in shown[-1]
    if width >= 80:
        for figure in ("640 im", "32.0", "loss 0.050", "held-out 0.523", "20s left"):
            assert figure in shown[-1]
    assert ("━" in shown[-1]) == (width > 60)


def test_only_the_main_process_speaks() -> None:
    for is_terminal in (False, True):
        out = io.StringIO()
        console = Console(file=out, force_terminal=is_terminal)
        with Progress(enabled=False, console=console) as progress:
            progress.update(1, 1, 32, 1.0, 0.5, 0.5, 0.0)
        assert out.getvalue() == ""


def bar_of(share: float | None, step: int, total: int | None) -> float:
    """The share of the bar that is filled, on a terminal of 120 columns."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, color_system="standard")
    with Progress(console=console, clock=Clock()) as progress:
        progress.update(step, total, 32 * step, 32.0, 0.5, 0.5, 90.0, share=share)
    line = [line for line in out.getvalue().splitlines() if f"step {step}" in line][-1]
    filled, whole = re.findall(r"\x1b\[[0-9;]*m([━╸╺]+)", line), re.findall("[━╸╺]", line)
    return len(filled[0]) / len(whole)


def test_the_bar_shows_the_share_that_is_done_and_else_the_steps() -> None:
    assert bar_of(0.25, 90, None) == pytest.approx(0.25, abs=0.05)
    assert bar_of(None, 50, 100) == pytest.approx(0.5, abs=0.05)
    assert bar_of(0.75, 50, 100) == pytest.approx(0.75, abs=0.05)  # time ends it first


def test_of_a_run_of_minutes_no_number_of_steps_is_promised() -> None:
    """It moved with the speed: 1,200 one minute, 900 the next."""
    console, out = plain_console()
    with Progress(console=console) as progress:
        progress.update(120, None, 3840, 63.0, 0.412, None, 252.0, share=0.3)
    assert out.getvalue().startswith("step    120 | 3,840 images | ")
    assert out.getvalue().endswith("| 4m12s left\n")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (252, "4m12s"),
        (3599.7, "1h00m"),
        (3780, "1h03m"),
        (86399, "1d00h"),
        (187200, "2d04h"),
        (None, "?"),
        (math.nan, "?"),
        (math.inf, "?"),
        (-5, "?"),
    ],
)
def test_durations(seconds: float | None, words: str) -> None:
    assert format_duration(seconds) == words
