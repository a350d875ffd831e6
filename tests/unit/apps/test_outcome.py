"""What a run of one's own pictures made, beside what was expected of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limner.apps.own_pictures.outcome import in_words, outcome
from limner.apps.own_pictures.settings_file import read_rate, write
from limner.reports.run_folder import Run
from limner.training.folder import CHOSEN
from limner.training.monitor.machine_share import Shared

RATE = 100.0
"""Images per second that were expected."""
PICTURES = 200
COMPANY = Shared(gets=0.4, others=0.6, threads=2).in_words()


def finished(
    speed: float,
    pause: float = 0.0,
    minutes: float | None = 10.0,
    images: float | None = None,
    shared: bool = False,
) -> Run:
    """A run of so many images per second in its steps, after a pause of so many seconds."""
    seconds = 60 * minutes if minutes else pause + (images or 0) / speed
    lines: list[dict[str, Any]] = []
    for number in range(1, 11):
        now = pause + (seconds - pause) * number / 10
        lines.append({"step": number, "images": speed * (now - pause), "seconds": now})
        lines[-1]["images_per_second"] = speed
    events = [{"message": COMPANY}] if shared else []
    plan = {"training_images": PICTURES, "max_seconds": minutes and 60 * minutes}
    return Run(Path(), {}, lines, [], events, [], {}, [], [], [], plan=plan)


def test_a_run_that_made_about_what_was_expected_needs_no_word() -> None:
    for speed in (85.0, 100.0, 119.0):
        assert in_words(finished(speed), RATE) is None


def test_fewer_passes_are_compared_with_those_that_were_expected() -> None:
    said = in_words(finished(50.0), RATE)
    assert said is not None
    assert said.startswith("made: 150 passes over the pictures in 10m00s (300 were expected): ")
    measured = "50.0 images/s in its steps, 100.0 expected"
    assert said.endswith(f": steps took longer than expected ({measured})")


def test_other_programs_are_named_where_they_were_seen() -> None:
    said = in_words(finished(50.0, shared=True), RATE)
    assert said is not None
    assert "other programs used the machine (50.0" in said
    # Where the steps were as fast as expected, they are not the cause.
    said = in_words(finished(100.0, pause=180, shared=True), RATE)
    assert said is not None
    assert said.endswith(": 3m00s went into compiling, previews, and held-out losses")


def test_of_several_causes_the_weightier_comes_first() -> None:
    compiling, steps = "went into compiling", "steps took longer"
    said = in_words(finished(70.0, pause=300), RATE) or ""
    assert 0 < said.index(compiling) < said.index(steps)
    said = in_words(finished(40.0, pause=90), RATE) or ""
    assert 0 < said.index(steps) < said.index(compiling)


def test_a_faster_machine_is_no_complaint() -> None:
    said = in_words(finished(150.0), RATE) or ""
    assert "made: 450 passes over the pictures in 10m00s (300 were expected)" in said
    assert "the machine is faster than it seemed" in said


def test_of_a_run_of_steps_the_time_is_compared() -> None:
    said = in_words(finished(50.0, minutes=None, images=60_000), RATE) or ""
    assert "made: 300 passes over the pictures in 20m00s (10m00s were expected)" in said


def test_a_run_without_any_step_says_nothing() -> None:
    assert in_words(Run(Path(), {}, [], [], [], [], {}, [], [], []), RATE) is None


def test_the_expectation_is_that_of_the_file_and_survives_a_resume(tmp_path: Path) -> None:
    assert outcome(tmp_path) is None  # nobody expected anything
    sections = {"training": {"max_minutes": 10}}
    write(tmp_path / CHOSEN, sections, ["head"], {"data": "photos", "minutes": 10}, RATE)
    run = finished(50.0)
    plan = {"kind": "plan", "step": 0, **run.plan}
    lines = [plan, *({"kind": "train", **line} for line in run.train)]
    text = "\n".join(json.dumps(line) for line in lines)
    (tmp_path / "log.jsonl").write_text(text, encoding="utf-8")
    assert (outcome(tmp_path) or "").startswith("made: 150 passes over the pictures in 10m00s (300")


@pytest.mark.parametrize("text", ["", "# expected: about x images/s", "# expected: about", "\0"])
def test_a_spoilt_file_expects_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / CHOSEN
    path.write_text(text, encoding="utf-8")
    assert read_rate(path) is None


@pytest.mark.parametrize("rate", [0.00312, 99.96, 12_345.6])
def test_any_rate_is_read_back(tmp_path: Path, rate: float) -> None:
    write(tmp_path / CHOSEN, {}, [], {}, rate)
    assert read_rate(tmp_path / CHOSEN) == pytest.approx(rate, rel=1e-3)
