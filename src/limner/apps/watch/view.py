"""What the page shows of runs, as JSON; texts and charts are made there."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from limner.apps.watch.runs import LiveRun, changed
from limner.reports.example_prompts import prompts_of
from limner.reports.line_chart import Points
from limner.reports.read_results import number, part, text
from limner.reports.run_folder import Run, evenly, images_per_second
from limner.reports.run_report import is_distilled, shared, smoothed, trained

MOST_POINTS = 300
"""Of a curve."""
MOST_EVENTS, MOST_REFUSED = 200, 50
"""The newest that are shown."""
MOST_LETTERS = 2000
"""Of an event."""
AXES = ("images", "minutes")
ENDED = 0.98
"""Share of its steps or its time after which a run has ended: one of minutes ends a bit early."""
NOT_COMPARED = {"output_dir", "run_name", "resume", "fingerprint"}
"""Keys that differ between any two runs."""
RANK = {"training": 0, "finished": 1, "stopped": 1, "unreadable": 2, "empty": 3}


def summary(live: LiveRun) -> dict[str, Any]:
    """A run in a few figures."""
    version, run, training = live.look()
    last = run.train[-1] if run.train else {}
    seconds, step = number(last.get("seconds")), number(last.get("step"))
    return {
        "name": live.name,
        "version": version,
        "status": status(run, training),
        "changed": changed(live.folder),
        "step": step,
        "images": number(last.get("images")),
        "seconds": seconds,
        "images_per_second": images_per_second(run),
        "seconds_left": seconds_left(run) if training else None,
        "share_done": share_done(run),
        "passes": passes(run),
        "loss": newest(run.train, "loss"),
        "heldout_loss": newest(run.heldout, "loss"),
        "refused": len(run.refused),
        "parameters": number(run.plan.get("parameters")) or number(run.results.get("parameters")),
        "training_images": number(run.plan.get("training_images")),
        "device": text(run.plan, "device") or text(run.results, "device"),
        "distilled": is_distilled(run),
    }


def in_order(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Summaries of those that train now, then of the newest with progress; empty ones are last."""

    def key(run: dict[str, Any]) -> tuple[int, bool, float]:
        return RANK[run["status"]], run.get("step") is None, -run.get("changed", 0.0)

    return sorted(runs, key=key)


def status(run: Run, training: bool) -> str:
    """training, finished, stopped, or empty (nothing has been logged)."""
    if training:
        return "training"
    if not run.train:
        return "empty"
    done = share_done(run)
    measured = number(run.results.get("steps")) == number(run.train[-1].get("step"))
    ended = measured if done is None else done > ENDED
    return "finished" if ended else "stopped"


def share_done(run: Run) -> float | None:
    """0 to 1 by what ends the run first, its steps or its time; None if neither is known."""
    if not run.train:
        return None
    last = run.train[-1]
    pairs = [("step", "max_steps"), ("seconds", "max_seconds")]
    shares = [
        done / most
        for key, limit in pairs
        if (done := number(last.get(key))) is not None and (most := number(run.plan.get(limit)))
    ]
    return min(1.0, max(shares)) if shares else None


def seconds_left(run: Run) -> float | None:
    """As the newest of the log have it; None if the end is not known."""
    if not run.train:
        return None
    last, plan = run.train[-1], run.plan
    seconds, step = number(last.get("seconds")) or 0.0, number(last.get("step")) or 0.0
    left = []
    if (most := number(plan.get("max_seconds"))) is not None:
        left.append(max(0.0, most - seconds))
    rate, per_step = number(last.get("images_per_second")), number(plan.get("images_per_step"))
    if (steps := number(plan.get("max_steps"))) is not None and rate and per_step:
        left.append(max(0.0, steps - step) * per_step / rate)
    return min(left) if left else None


def passes(run: Run) -> float | None:
    """How often each training image was seen."""
    images = number(run.train[-1].get("images")) if run.train else None
    count = number(run.plan.get("training_images"))
    return images / count if images is not None and count else None


def newest(lines: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = (number(line.get(key)) for line in reversed(lines))
    return next((value for value in values if value is not None), None)


def contents(live: LiveRun) -> dict[str, Any]:
    """Everything of a run: curves, previews, events, what was refused, results, settings."""
    version, run, _ = live.look()
    events, refused = run.events[-MOST_EVENTS:], run.refused[-MOST_REFUSED:]
    run = shared(replace(run, events=events, refused=refused))
    seen = [(number(line.get("step")) or 0.0, number(line.get("images"))) for line in run.train]
    steps = [step for step, _ in seen]
    return {
        "name": live.name,
        "version": version,
        "about": trained(run),
        "examples": prompts_of(run),
        "curves": curves(run),
        "levels": levels(run),
        "previews": [
            {"step": step, "images": seen[k - 1][1] if (k := bisect_right(steps, step)) else None}
            for step, _ in run.previews
        ],
        "events": [
            {key: line.get(key) for key in ("step", "seconds")}
            | {"message": str(line.get("message", ""))[:MOST_LETTERS]}
            for line in run.events
        ],
        "refused": [
            {key: str(line.get(key, "")) for key in ("key", "reason")} for line in run.refused
        ],
        "copies": [
            {"step": line["step"], "ratio": number(line.get("ratio"))} for line in run.copies
        ],
        "results": results(run),
        "settings": settings(run),
    }


def curves(run: Run) -> dict[str, dict[str, Points]]:
    """Points of each curve by axis, (images or minutes, value); "training" is smoothed."""
    return {
        axis: {
            "training": evenly(smoothed(points(run, run.train, "loss", axis)), MOST_POINTS),
            "held_out": points(run, run.heldout, "loss", axis),
            "trained": points(run, run.heldout, "train_loss", axis),
            "speed": evenly(
                smoothed(points(run, run.train, "images_per_second", axis)), MOST_POINTS
            ),
            "learning_rate": evenly(points(run, run.train, "learning_rate", axis), MOST_POINTS),
            "gradient": evenly(smoothed(points(run, run.train, "grad_norm", axis)), MOST_POINTS),
        }
        for axis in AXES
    }


def levels(run: Run) -> dict[str, dict[str, Points]]:
    """The held-out loss by axis and timestep; of a student there is none."""
    if is_distilled(run):
        return {axis: {} for axis in AXES}
    found: dict[str, dict[str, Points]] = {axis: {} for axis in AXES}
    for line in run.heldout:
        by_level = part(line, "loss_by_level")
        for level in by_level:
            for axis in AXES:
                more = points(run, [line | by_level], level, axis)
                found[axis].setdefault(level, []).extend(more)
    return found


def points(run: Run, lines: Sequence[dict[str, Any]], key: str, axis: str) -> Points:
    """Of lines that have both numbers."""
    found = []
    for line in lines:
        x = number(line.get("seconds" if axis == "minutes" else "images"))
        y = number(line.get(key))
        if x is not None and y is not None:
            found.append((x / 60 if axis == "minutes" else x, y))
    return found


def results(run: Run) -> dict[str, Any]:
    """What was measured at the end."""
    recall = {
        split: {"at_1": number(about.get("at_1")), "count": number(about.get("count"))}
        for split in part(run.results, "recall")
        if (about := part(part(run.results, "recall"), split))
    }
    noise = part(run.results, "flat_region_std")
    return {
        "recall": recall,
        "noise": number(noise.get("drawn")),
        "real_noise": number(noise.get("real")),
        "step": number(run.results.get("steps")),
    }


def settings(run: Run) -> dict[str, Any]:
    """The configuration as {"section.key": value}."""
    flat: dict[str, Any] = {}
    for name, value in run.config.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return {
        str(key): value
        for key, value in flat.items()
        if str(key).rpartition(".")[2] not in NOT_COMPARED
    }
