"""The progress line: live in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from limner.console import format_duration, printable, rich_console

ROOMY_WIDTH = 104  # columns from which the line has room for units and a bar beside all figures
REFRESH_EVERY = 0.2  # seconds; redrawing more often only takes time from training


class Progress:
    """Context manager around a training run; the trainer calls `update` after each step.

    On a terminal it redraws one line (bar, step, pictures seen, speed, losses, time left). In a
    notebook it replaces one line of text under the cell, which needs no widgets (rich's own does).
    Anywhere else (CI, a log file, a pipe) it prints a line with the same figures at most every
    `plain_every` seconds. With `enabled` false (every process but the main one) it is silent.
    """

    def __init__(
        self,
        enabled: bool = True,
        plain_every: float = 15.0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.enabled = enabled
        self.plain_every = plain_every
        # Soft wrap: text printed above the live line is not broken into lines.
        self.console = console or rich_console(soft_wrap=True)
        self.clock = clock
        self.notebook = NotebookLine() if enabled and self.console.is_jupyter else None
        is_screen = self.console.is_terminal and not self.console.is_dumb_terminal
        is_screen = is_screen and not self.console.is_jupyter
        self.live = (
            Live(console=self.console, auto_refresh=False) if enabled and is_screen else None
        )
        self.last_shown = -math.inf
        self.unshown = ""

    def __enter__(self) -> Progress:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live is not None:
            self.live.refresh()
            self.live.stop()
        elif self.unshown and self.notebook is not None:
            self._show_in_notebook(self.clock())
        elif self.unshown:
            self._print(self.unshown)  # the last figures are the ones people look for
            self.unshown = ""

    def update(
        self,
        step: int,
        total_steps: int | None,
        images: int,
        images_per_second: float | None,
        loss: float | None,
        heldout_loss: float | None,
        seconds_left: float | None,
        cpu_share: float | None = None,
        share: float | None = None,
    ) -> None:
        """Show the progress. Values that are not known yet are None and left out.

        Args:
            total_steps: that were asked for; None: only time bounds the run, whose number of steps
                depends on its speed.
            cpu_share: of its threads' CPU time, that the run gets on a shared machine.
            share: of the run that is done, for the bar, 0 to 1; None: as the steps have it.
        """
        if not self.enabled:
            return
        now = self.clock()
        known = (images, images_per_second, loss, heldout_loss, seconds_left, cpu_share)
        figures = (step, total_steps, *known)
        if self.live is not None:
            if share is None and total_steps:
                share = min(step / total_steps, 1.0)
            self.live.update(live_line(share, *figures, width=self.console.width))
            if now - self.last_shown >= REFRESH_EVERY or step == total_steps:
                self.live.refresh()
                self.last_shown = now
            return
        self.unshown = plain_line(*figures)
        if self.notebook is not None:
            if now - self.last_shown >= REFRESH_EVERY or step == total_steps:
                self._show_in_notebook(now)
            return
        if now - self.last_shown >= self.plain_every or step == total_steps:
            self._print(self.unshown)
            self.unshown = ""
            self.last_shown = now

    def _show_in_notebook(self, now: float) -> None:
        assert self.notebook is not None
        self.notebook.show(self.unshown)
        self.unshown = ""
        self.last_shown = now

    def _print(self, text: str) -> None:
        # A Windows console or a log file may know only cp1252; "?" there is better than a crash.
        encoding = self.console.encoding
        text = printable(text).encode(encoding, errors="replace").decode(encoding)
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class NotebookLine:
    """A line under a notebook's cell that is replaced in place."""

    def __init__(self) -> None:
        self.handle: Any = None

    def show(self, text: str) -> None:
        from IPython.display import display

        shown = {"text/plain": text}
        if self.handle is None:
            self.handle = display(shown, raw=True, display_id=True)
        else:
            self.handle.update(shown, raw=True)


def plain_line(
    step: int,
    total_steps: int | None,
    images: int,
    images_per_second: float | None,
    loss: float | None,
    heldout_loss: float | None,
    seconds_left: float | None,
    cpu_share: float | None = None,
) -> str:
    """One line with all figures, which can be read, searched and cut into columns:

    `step    120/700 | 3,840 images | 63.0 images/s | loss 0.412 | held-out 0.523 | 4m12s left`
    """
    where = f"step {step:>6}" if total_steps is None else f"step {step:>6}/{total_steps}"
    figures = images, images_per_second, loss, heldout_loss, seconds_left, cpu_share
    return " | ".join([where, *figures_in_words(*figures)])


def figures_in_words(
    images: int,
    images_per_second: float | None,
    loss: float | None,
    heldout_loss: float | None,
    seconds_left: float | None,
    cpu_share: float | None = None,
    short: bool = False,
) -> list[str]:
    """Each figure with its name; unknown ones are left out."""
    words = [f"{images:,} {'img' if short else 'images'}"]
    if images_per_second is not None:
        words.append(f"{images_per_second:.1f}{'/s' if short else ' images/s'}")
    if loss is not None:
        words.append(f"loss {loss:.3f}")
    if heldout_loss is not None:
        words.append(f"held-out {heldout_loss:.3f}")
    if seconds_left is not None:
        words.append(f"{format_duration(seconds_left)} left")
    if cpu_share is not None:
        words.append(f"CPU {cpu_share:.0%}" + ("" if short else ", machine shared"))
    return words


def live_line(
    done: float | None,
    step: int,
    total_steps: int | None,
    images: int,
    images_per_second: float | None,
    loss: float | None,
    heldout_loss: float | None,
    seconds_left: float | None,
    cpu_share: float | None = None,
    *,
    width: int,
) -> Table:
    """The bar, which fills the remaining width, between the step and the other figures."""
    short = width < ROOMY_WIDTH
    where = f"step {step}" if total_steps is None else f"step {step}/{total_steps}"
    known = images, images_per_second, loss, heldout_loss, seconds_left, cpu_share
    words = figures_in_words(*known, short)
    figures = ("  " if not short else " ").join(words)
    line = Table.grid(padding=(0, 1, 0, 0), expand=True)
    room = width - len(where) - len(figures) - 3
    line.add_column(no_wrap=True, min_width=len(where), style="bold")
    cells: list[str | ProgressBar] = [where]
    if room >= 6 and done is not None:  # a shorter bar says nothing: the figures come first
        line.add_column(ratio=1)
        cells.append(ProgressBar(total=1.0, completed=done, width=None))
    line.add_column(no_wrap=True, overflow="ellipsis", justify="right")
    line.add_row(*cells, figures)
    return line
