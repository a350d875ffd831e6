"""Reading a run folder, for `report.html` and other readers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limner.checkpoint.lineage import Lineage, read_lineage
from limner.errors import LimnerError
from limner.files import small_files
from limner.reports.gauges import is_number
from limner.reports.read_results import number, part


@dataclass(frozen=True)
class Run:
    """The contents of a run folder; empty where a file is missing."""

    folder: Path
    config: dict[str, Any]
    train: list[dict[str, Any]]
    heldout: list[dict[str, Any]]
    events: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    results: dict[str, Any]
    refused: list[dict[str, Any]]
    previews: list[tuple[int, Path]]
    buckets: list[dict[str, Any]]
    """Training sizes with the number of images of each; empty if all images are square."""
    lineage: Lineage | None = None
    """What the model was trained from; None if the run predates lineage.json."""
    plan: dict[str, Any] = field(default_factory=dict)
    """How long it is to be, and how many images it has; empty if the run predates it."""
    copies: list[dict[str, Any]] = field(default_factory=list)
    """How close drawings of held-out captions were to training images, by step."""
    speed: dict[str, Any] = field(default_factory=dict)
    """What was measured at its end: images per second, and the share of the peak; empty before."""


def read_run(folder: Path) -> Run:
    """Read all files of a run; a missing or partially written one counts as empty."""
    return run_of(folder, read_lines(folder / "log.jsonl"))


def run_of(folder: Path, log: Sequence[dict[str, Any]]) -> Run:
    """A run of which the lines of the log have been read."""
    try:
        config = small_files.read_yaml(folder / "config.yaml")
    except FileNotFoundError:
        config = {}
    shots = ((step_of(path), path) for path in own_files(folder, "previews", "step-*.png"))
    samples, results = read_json(folder / "samples.json"), read_json(folder / "results.json")
    return Run(
        folder=folder,
        config=config if isinstance(config, dict) else {},
        train=by_step(
            line for line in log if line.get("kind") == "train" and is_number(line.get("images"))
        ),
        heldout=by_step(line for line in log if line.get("kind") == "heldout"),
        events=[line for line in log if line.get("kind") == "event"],
        samples=_dictionaries(samples),
        results=results if isinstance(results, dict) else {},
        refused=read_lines(folder / "refused.jsonl"),
        buckets=next(
            (
                _dictionaries(line.get("sizes"))
                for line in reversed(log)
                if line.get("kind") == "buckets"
            ),
            [],
        ),
        previews=sorted((step, path) for step, path in shots if step is not None),
        lineage=_lineage(folder),
        plan=next((line for line in reversed(log) if line.get("kind") == "plan"), {}),
        copies=by_step(line for line in log if line.get("kind") == "copies"),
        speed=next((line for line in reversed(log) if line.get("kind") == "speed"), {}),
    )


def images_per_second(run: Run) -> float | None:
    """The speed of a run, for every page: the median of its steps, which is measured at the end.
    Before, or where a run that was ended has gone on since, that of the last stretch logged."""
    last = run.train[-1] if run.train else {}
    speed = run.speed or {**part(run.results, "speed"), "step": run.results.get("steps")}
    at, step = number(speed.get("step")), number(last.get("step"))
    of_the_whole = number(speed.get("images_per_second"))
    over = at is None or step is None or at >= step
    return of_the_whole if of_the_whole and over else number(last.get("images_per_second"))


def own_files(folder: Path, name: str, pattern: str) -> list[Path]:
    """Regular files in a folder of the run: pages are shared, and must show nothing that a link
    leads to. A pipe, which would be waited for without end, is none."""
    inside = folder / name
    if inside.is_symlink():
        return []
    return [path for path in inside.glob(pattern) if path.is_file() and not path.is_symlink()]


def _lineage(folder: Path) -> Lineage | None:
    try:
        return read_lineage(folder)
    except LimnerError:
        return None


def _dictionaries(found: Any) -> list[dict[str, Any]]:
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def read_json(path: Path) -> Any:
    try:
        return small_files.read_json(path, most=2**28)
    except (OSError, LimnerError):
        return None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects in `path`; a last line truncated by a killed run is skipped."""
    return list(small_files.json_lines(path)) if path.exists() else []


def by_step(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """In order of steps; for steps repeated after a resume, the last one counts."""
    latest = {line["step"]: line for line in lines if is_number(line.get("step"))}
    return [latest[step] for step in sorted(latest)]


def step_of(preview: Path) -> int | None:
    digits = preview.stem.removeprefix("step-")
    return int(digits) if digits.isascii() and digits.isdecimal() else None


def evenly(items: list[Any], most: int) -> list[Any]:
    """At most `most` of `items`, evenly spaced, including the first and the last."""
    if len(items) <= most:
        return items
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]
