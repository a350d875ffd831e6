"""What a run of `limner train FOLDER` made, beside what was expected of it."""

from __future__ import annotations

from pathlib import Path

from limner.apps.own_pictures.settings_file import read_rate
from limner.console import format_duration
from limner.reports.read_results import number
from limner.reports.run_folder import Run, read_run
from limner.training.folder import CHOSEN

DIFFERS = 0.2
"""Share by which it must differ from what was expected to be worth a word: the time of a step can
be told in advance within a third (limner.apps.estimate)."""
COUNTS = 0.1
"""Share of the time from which something counts as a cause."""
SHARED = "other programs use"
"""How the event begins that says so (`limner.training.monitor.machine_share`)."""


def outcome(folder: Path) -> str | None:
    """A sentence about a finished run, from its files; None: it is about as expected, or nobody
    expected anything."""
    rate = read_rate(folder / CHOSEN)
    return in_words(read_run(folder), rate) if rate else None


def in_words(run: Run, rate: float) -> str | None:
    """The same, where so many images per second were expected."""
    last = run.train[-1] if run.train else {}
    images, seconds = number(last.get("images")), number(last.get("seconds"))
    trained = number(run.plan.get("training_images"))
    if not images or not seconds or not trained:
        return None
    made = images / seconds
    if abs(made / rate - 1) <= DIFFERS:
        return None
    passes = f"{images / trained:,.0f} passes over the pictures in {format_duration(seconds)}"
    if (most := number(run.plan.get("max_seconds"))) is not None:
        expected = f"{rate * most / trained:,.0f} were expected"
    else:
        expected = f"{format_duration(images / rate)} were expected"
    return f"made: {passes} ({expected}): {'; '.join(causes(run, rate, images, seconds))}"


def causes(run: Run, rate: float, images: float, seconds: float) -> list[str]:
    """Why it was slower or faster, the weightiest first; at least one."""
    stepping = seconds_in_steps(run)
    speed = images / stepping if stepping else images / seconds
    measured = f"{speed:,.1f} images/s in its steps, {rate:,.1f} expected"
    if speed > rate * (1 + COUNTS):
        return [f"the machine is faster than it seemed ({measured})"]
    beside, slower = seconds - stepping, stepping - images / rate
    found = []
    if beside > COUNTS * seconds:
        spent = format_duration(beside)
        found.append((beside, f"{spent} went into compiling, previews, and held-out losses"))
    if slower > COUNTS * seconds or not found:
        shared = any(str(e.get("message", "")).startswith(SHARED) for e in run.events)
        why = "other programs used the machine" if shared else "steps took longer than expected"
        found.append((slower, f"{why} ({measured})"))
    return [words for _, words in sorted(found, reverse=True)]


def seconds_in_steps(run: Run) -> float:
    """Of the whole run, by the speed of each logged stretch: without what lies between the steps,
    and without the pauses that a median leaves out, such as the first step's compiling."""
    total = before = 0.0
    for line in run.train:
        images, speed = number(line.get("images")), number(line.get("images_per_second"))
        if images is not None and speed:
            total += max(0.0, images - before) / speed
            before = images
    return total
