"""`check.html`: the problems of a data set, and what the model will see of it, in one file.

It is built from `check.json` and the images next to it only; missing parts are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from limner.errors import LimnerError
from limner.messages import plural
from limner.redaction import redacted
from limner.reports.embedded_images import embed_image
from limner.reports.gauges import ShareGauge, is_number
from limner.reports.page import Card, write_from
from limner.reports.read_results import number, part, rows, text, texts
from limner.reports.run_folder import read_json

SHOWN = 20
"""Rows shown for each kind of finding; problems.jsonl has all of them."""
SEVERITIES = ("error", "warning", "note")


def write_check_page(folder: Path, places: Iterable[str] = ()) -> Path:
    """Write `check.html` to `folder`, with all images embedded, and return its path.

    Args:
        places: paths to shorten to their last component. Other paths are shortened where they can
            be recognised in text.

    Raises:
        LimnerError: there is no valid check.json.
    """
    told = read_json(folder / "check.json")
    if not isinstance(told, dict):
        raise LimnerError(
            f"{folder / 'check.json'} is missing or damaged; run `limner check-data CONFIG` to "
            "write it."
        )
    told = redacted(told, places, but=("caption", "captions"))
    return write_from("check.html", folder / "check.html", values_of(folder, told))


def values_of(folder: Path, told: dict[str, Any]) -> dict[str, Any]:
    """The context of the template check.html."""
    dataset, settings, about = (part(told, key) for key in ("dataset", "settings", "pictures"))
    name, small = text(dataset, "name"), figures(told)
    buckets = text(settings, "data.buckets")
    return {
        "title": f"{name}: data check" if name else "Data check",
        "day": text(told, "created")[:10],
        "verdict": verdict(told),
        "about": text(dataset, "description"),
        "small": small,
        "thirds": len(small) == 3,
        "findings": [finding_of(finding) for finding in rows(told, "findings")],
        "alike": alike(folder, told),
        "samples": [seen(folder, sample) for sample in rows(told, "samples")],
        "size": None if buckets else number(settings.get("data.image_size")),
        "pictures": {
            "Shorter side, pixels": bars(labelled(part(about, "shorter_side"), "px")),
            "Width by height": bars(labelled(part(about, "width_by_height"), "")),
            "Format": bars(_counts(part(about, "formats"))),
            "Mode": bars(_counts(part(about, "modes"))),
        },
        "lengths": lengths(part(told, "captions")),
        "scripts": bars(_counts(part(part(told, "captions"), "scripts"))),
        "settings": {key: value for key, value in settings.items() if value is not None},
    }


def verdict(told: dict[str, Any]) -> str:
    counts = severities(told)
    if not any(counts.values()):
        return "No problems found."
    said = [
        f"{count:,} {plural(count, severity_of(severity) or 'other')}"
        for severity, count in counts.items()
        if count
    ]
    return ", ".join(said) + "."


def severity_of(severity: str) -> str:
    """A known severity, or an empty string."""
    return severity if severity in SEVERITIES else ""


def severities(told: dict[str, Any]) -> dict[str, int]:
    counts = dict.fromkeys(SEVERITIES, 0)
    for finding in rows(told, "findings"):
        severity = text(finding, "severity")
        counts[severity] = counts.get(severity, 0) + round(number(finding.get("count")) or 0)
    return counts


def figures(told: dict[str, Any]) -> list[Card]:
    about = part(told, "rows")
    cut = number(part(told, "pictures").get("mean_share_cut"))
    cards = [
        (name, f"{value:,.0f}", note)
        for name, value, note in (
            ("rows checked", number(about.get("looked_at")), _of_used(about)),
            ("training", number(about.get("trained")), ""),
            ("held out", number(about.get("held_out")), ""),
        )
        if value is not None
    ]
    if cut is not None:
        buckets = text(part(told, "settings"), "data.buckets")
        crop = "for the nearest of data.buckets" if buckets else "for the square crop"
        cards.append(("of each image is cropped", f"{cut:.0%}", f"mean, {crop}"))
    return cards


def _of_used(about: dict[str, Any]) -> str:
    used, seen_rows = number(about.get("used")), number(about.get("looked_at"))
    return f"of {used:,.0f}" if used and seen_rows and seen_rows < used else ""


def finding_of(finding: dict[str, Any]) -> dict[str, Any]:
    """Findings of one kind, with the first rows."""
    count, first = number(finding.get("count")) or 0, rows(finding, "first")[:SHOWN]
    said = [(text(row, "key"), text(row, "said")) for row in first]
    meaning = text(finding, "meaning")
    return {
        "verdict": severity_of(text(finding, "severity")),
        "kind": text(finding, "kind"),
        "count": count,
        "meaning": f"{meaning[:1].upper()}{meaning[1:]}." if meaning else "",
        "todo": text(finding, "todo"),
        "first": [(key, words.removeprefix(f"{key}: ")) for key, words in said],
        "more": count - len(first),
    }


def alike(folder: Path, told: dict[str, Any]) -> list[dict[str, Any]]:
    """Duplicates: the kind, and the image, key, and caption of both rows."""
    shown = []
    for pair in rows(told, "alike"):
        files, keys, words = (texts(pair, key) for key in ("files", "keys", "captions"))
        if len(files) == len(keys) == len(words) == 2:
            both = zip((embed_image(folder, name) for name in files), keys, words, strict=True)
            shown.append({"kind": text(pair, "kind"), "both": list(both)})
    return shown


def seen(folder: Path, sample: dict[str, Any]) -> dict[str, Any]:
    """The original image of a row and its training crop."""
    captions = texts(sample, "captions")
    return {
        "whole": embed_image(folder, sample.get("whole")),
        "seen": embed_image(folder, sample.get("seen")),
        "caption": captions[0] if captions else "",
        "others": captions[1:4],
    }


def lengths(about: dict[str, Any]) -> dict[str, str]:
    """Caption lengths and counts."""
    found: dict[str, str] = {}
    for key in ("characters", "tokens"):
        if one := part(about, key):
            found[f"{key}: min, median, 95%, max"] = ", ".join(
                f"{number(one.get(name)) or 0:,.0f}" for name in ("least", "median", "p95", "most")
            )
    for name, key in (
        ("captions", "count"),
        ("rows with several", "rows_with_several"),
        ("truncated by text_encoder.max_length", "cut"),
    ):
        value = number(about.get(key))
        if value is not None:
            found[name] = f"{value:,.0f}"
    if text(about, "tokens_by"):
        found["tokenizer"] = text(about, "tokens_by")
    return found


def labelled(histogram: dict[str, Any], unit: str) -> dict[str, float]:
    """{"below 16 px": 3, "16 to 31 px": 8, ...} without empty bins."""
    edges, counts = histogram.get("edges"), histogram.get("counts")
    if not (isinstance(edges, list) and isinstance(counts, list) and len(counts) == len(edges) + 1):
        return {}
    if not edges or not all(map(is_number, edges)):
        return {}
    if unit:
        inner = [f"{low} to {high - 1} {unit}" for low, high in pairwise(edges)]
        names = [f"below {edges[0]} {unit}", *inner, f"{edges[-1]} {unit} and more"]
    else:
        named = [_ratio(edge) for edge in edges]
        inner = [f"{low} to {high}" for low, high in pairwise(named)]
        names = [f"below {named[0]}", *inner, f"{named[-1]} and more"]
    return {name: float(n) for name, n in zip(names, counts, strict=True) if number(n)}


def _ratio(edge: float) -> str:
    """0.5 -> 1:2, 1.25 -> 5:4"""
    for high in range(1, 6):
        for wide in range(1, 6):
            if abs(wide / high - edge) < 1e-6:
                return f"{wide}:{high}"
    return f"{edge:.2g}"


def _counts(found: dict[str, Any]) -> dict[str, float]:
    return {str(key): number(value) or 0.0 for key, value in found.items()}


def bars(counts: dict[str, float]) -> list[ShareGauge]:
    total = sum(counts.values())
    return [
        ShareGauge(name, count / total, None, f"{count:,.0f}")
        for name, count in counts.items()
        if total
    ]
