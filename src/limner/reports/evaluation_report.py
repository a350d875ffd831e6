"""`evaluation.html`: metrics, confidence intervals, and how to reproduce them, in one file.

It is built from `evaluation.json` and the images next to it only. Missing or invalid parts are left
out, so a page can always be written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limner.errors import LimnerError
from limner.evaluation.splits import adjective
from limner.redaction import redacted
from limner.reports.embedded_images import drawn_images, embed_image
from limner.reports.gauges import DistanceGauge, ShareGauge, between, figure, is_number
from limner.reports.line_chart import Points
from limner.reports.page import Card, chart, in_words, write_from
from limner.reports.read_results import (
    SPLITS,
    interval,
    number,
    of_split,
    of_splits,
    part,
    rows,
    share_interval,
    text,
    texts,
)
from limner.reports.run_folder import read_json


def write_page(folder: Path) -> Path:
    """Write `evaluation.html` to `folder`, with all images embedded, and return its path.

    Raises:
        LimnerError: there is no valid evaluation.json.
    """
    folder = Path(folder)
    told = read_json(folder / "evaluation.json")
    if not isinstance(told, dict):
        raise LimnerError(
            f"{folder / 'evaluation.json'} is missing or damaged; run `limner evaluate CHECKPOINT` "
            "to write it."
        )
    told = redacted(told, but=("prompt", "caption"))
    return write_from("evaluation.html", folder / "evaluation.html", values_of(folder, told))


def values_of(folder: Path, told: dict[str, Any]) -> dict[str, Any]:
    """The context of the template evaluation.html."""
    checkpoint, dataset = part(told, "checkpoint"), part(told, "dataset")
    large, small = shares_first(told), distances_first(told)
    samples, name = rows(told, "pictures"), text(dataset, "name")
    return {
        "title": f"{name}: evaluation" if name else "Evaluation",
        "size": number(checkpoint.get("parameters")),
        "step": number(checkpoint.get("step")),
        "seen": number(checkpoint.get("images")),
        "device": text(told, "device"),
        "day": text(told, "created")[:10],
        "about": text(dataset, "description"),
        "trained": number(dataset.get("trained")),
        "held_out": number(dataset.get("held_out")),
        "large": large[:2],
        "small": small,
        "thirds": len(small) in (3, 5, 6),  # avoids a nearly empty row
        "events": texts(told, "events"),
        "distances": distances(told),
        "shares": shares(told),
        "loss": held_out_loss(told),
        "pictures": drawn_images(folder, samples),
        "ranked": any(sample.get("rank") is not None for sample in samples),
        "memorisation": memorisation(folder, told),
        "protocol": protocol(told),
        "metrics": [(name_of(metric), about_metric(metric)) for metric in rows(told, "metrics")],
        "tables": tables(told),
        "command": text(told, "command"),
    }


def name_of(metric: dict[str, Any]) -> str:
    return str(metric.get("name", "distance"))


# ---- headline numbers ----------------------------------------------------------------------------


def shares_first(told: dict[str, Any]) -> list[Card]:
    found = []
    for key, what, words in (
        ("recall", "at_1", "recall@1"),
        ("checker", "all_right", "fully correct"),
    ):
        for split, about, value in of_splits(told, key, what):
            name = f"{words}, {adjective(split)} prompts"
            found.append((name, f"{value:.0%}", said(about, what)))
    return found


def said(about: dict[str, Any], key: str) -> str:
    """81 of 90; 95% CI 82% to 95%; recall@5 97%"""
    count, value, five = number(about.get("count")), number(about.get(key)), None
    if key == "at_1":
        five = number(about.get("at_5"))
    pieces = [
        f"{round(value * count)} of {count:,.0f}" if count and value is not None else "",
        between(share_interval(about, key, count), percent=True),
        f"recall@5 {five:.0%}" if five is not None else "",
    ]
    return "; ".join(filter(None, pieces))


def distances_first(told: dict[str, Any]) -> list[Card]:
    found = []
    for metric in rows(told, "metrics")[:4]:
        value, floor = number(metric.get("value")), number(metric.get("floor"))
        if value is None:
            continue
        notes = [between(interval(metric))]
        notes.append(f"real-vs-real {figure(floor)}" if floor is not None else "")
        found.append((name_of(metric), figure(value), "; ".join(filter(None, notes))))
    copying = part(told, "memorisation").get("ratio")
    if (ratio := number(copying)) is not None:
        note = between(interval(copying)) or "1: as new as held-out images; 0: copies"
        found.append(("distance to the nearest training image", f"{ratio:.2f}×", note))
    noise = part(told, "flat_region_std")
    if (drawn := number(noise.get("drawn"))) is not None:
        real = number(noise.get("real"))
        note = "standard deviation, of 255" + (f"; real {real:.1f}" if real is not None else "")
        found.append(("noise in flat areas", f"{drawn:.1f}", note))
    losses = part(told, "held_out_loss")
    if (gap := number(losses.get("gap"))) is not None:
        of = between(interval({"interval": losses.get("gap_interval")}))
        note = "; ".join(filter(None, ["held-out loss minus training loss", of]))
        found.append(("generalisation gap", figure(gap), note))
    return found


# ---- sections ----------------------------------------------------------------------------------


def distances(told: dict[str, Any]) -> list[DistanceGauge]:
    gauges = []
    for metric in rows(told, "metrics"):
        value, floor = number(metric.get("value")), part(metric, "floor")
        if value is None:
            continue
        several = floor.get("values")
        gauges.append(
            DistanceGauge(
                name_of(metric),
                value,
                interval(metric),
                number(floor),
                [float(x) for x in several if is_number(x)] if isinstance(several, list) else [],
                str(metric.get("better", "lower")),
                [*texts(metric, "notes"), *texts(floor, "notes")],
                counted(metric.get("counts")),
                counted(floor.get("counts")),
            )
        )
    return gauges


def counted(counts: Any) -> str:
    """[259, 3694] -> "259 vs 3,694 images"; "" if unknown."""
    if not isinstance(counts, list) or len(counts) != 2 or not all(map(is_number, counts)):
        return ""
    return f"{counts[0]:,.0f} vs {counts[1]:,.0f} images"


def shares(told: dict[str, Any]) -> dict[str, Any]:
    """Recall and the results of the checker, with confidence intervals."""
    bars: list[ShareGauge] = []
    recall = of_splits(told, "recall", "at_1")
    for split, about, _ in recall:
        for key, what in (("at_1", "recall@1"), ("at_5", "recall@5")):
            bars += share_of(about, key, f"{adjective(split)} prompts: {what}")
    checked = of_splits(told, "checker", "all_right")
    for split, about, _ in checked:
        prompts = f"{adjective(split)} prompts"
        bars += share_of(about, "all_right", f"{prompts}: fully correct")
        for name in part(about, "by_part"):
            bars += share_of(part(about, "by_part"), name, f"{prompts}: {name}", about.get("count"))
    compared_with = text(recall[-1][1], "range").rstrip(".") if recall else ""
    return {"bars": bars, "recall": recall, "checked": checked, "range": compared_with}


def share_of(about: dict[str, Any], key: str, name: str, count: Any = None) -> list[ShareGauge]:
    value, total = number(about.get(key)), number(count or about.get("count"))
    if value is None:
        return []
    note = f"{round(value * total)} of {total:,.0f}" if total else ""
    return [ShareGauge(name, value, share_interval(about, key, total), note)]


def held_out_loss(told: dict[str, Any]) -> dict[str, Any] | None:
    losses = part(told, "held_out_loss")
    series: dict[str, Points] = {}
    for split in SPLITS:
        levels = [(as_number(level), number(x)) for level, x in of_split(losses, split).items()]
        points = sorted((at, x) for at, x in levels if at is not None and x is not None)
        if points:
            series[split] = points
    if not series:
        return None
    most = max(x for points in series.values() for x, _ in points)
    noise = "1" if most <= 1 else "1000"
    return {
        "count": number(losses.get("count")),
        "trained_count": number(losses.get("trained_count")),
        "chart": chart(
            series, "Loss by noise level", f"noise level t (0: clean, {noise}: pure noise)"
        ),
    }


def as_number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if is_number(value) else None


def memorisation(folder: Path, told: dict[str, Any]) -> dict[str, Any]:
    """The generated images most similar to a training image, next to it."""
    about = part(told, "memorisation")
    return {
        "verdict": text(about, "verdict"),
        "count": number(about.get("count")),
        "split": text(about, "split"),
        "space": text(about, "space").rstrip("."),
        "pairs": [pair(folder, case) for case in rows(about, "worst")],
    }


def pair(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    # If the caption's real image has a near-duplicate, that distance is the one to compare with.
    ratios = [number(case.get(key)) for key in ("ratio", "own_ratio")]
    apart = (
        ("distance", number(case.get("distance"))),
        ("held-out median", number(case.get("usual"))),
        ("real image of this prompt", number(case.get("own"))),
    )
    return {
        "drawn": embed_image(folder, case.get("drawn")),
        "trained": embed_image(folder, case.get("trained")),
        "prompt": text(case, "prompt"),
        "caption": text(case, "caption"),
        "ratio": max((r for r in ratios if r is not None), default=None),
        "apart": "; ".join(f"{what} {figure(x)}" for what, x in apart if x is not None),
    }


def protocol(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All that must be equal for two numbers to be comparable, by group."""
    groups: dict[str, dict[str, Any]] = {}
    for key, value in part(told, "protocol").items():
        group, dot, name = key.partition(".")
        groups.setdefault(group if dot else "", {})[name if dot else key] = value
    return groups


def about_metric(metric: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    if counted(metric.get("counts")):
        shown["generated vs reference"] = counted(metric.get("counts"))
    for key in ("interval_by", "std"):
        if metric.get(key) is not None:
            shown[key.replace("_", " ")] = metric[key]
    floor = part(metric, "floor")
    if counted(floor.get("counts")):
        values = in_words(floor.get("values"))
        shown["real-vs-real baseline"] = f"{counted(floor.get('counts'))}: {values}"
    for key in ("network", "reference"):
        about = metric.get(key)
        for name, value in about.items() if isinstance(about, dict) else ():
            if not isinstance(value, dict):  # the cache key would repeat the rest
                shown[f"{key}: {name}"] = value
    return shown


def tables(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Tables by heading."""
    refused = {str(row.get("key", "?")): row.get("reason", "") for row in rows(told, "refused")}
    found = {
        "Checkpoint": part(told, "checkpoint"),
        "Versions": part(told, "versions"),
        f"Skipped rows: {len(refused)}": refused,
    }
    return {name: values for name, values in found.items() if values}
