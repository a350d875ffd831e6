"""`check.html`: what is wrong with a data set, and what the model will see of it, in one file.

It is read from `check.json` and the pictures beside it alone; what is not there is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from limner.errors import LimnerError
from limner.files.atomic import write_text_whole
from limner.messages import plural
from limner.redaction import redacted
from limner.reports.gauges import share_gauge
from limner.reports.html import SAMPLE_SIDE, folded, page, picture, section, table
from limner.reports.read_results import number, part, rows, text, texts
from limner.reports.run_folder import read_json

SHOWN = 20
"""Rows of each kind of finding; all of them are in problems.jsonl."""
VERDICTS = {"error": "to fix", "warning": "to look at", "note": "only noted"}


def write_check_page(folder: Path, places: Iterable[str] = ()) -> Path:
    """Writes `check.html` into `folder`, all pictures inside it, and returns its path.

    Args:
        places: paths of which the page shows the last name alone, whatever their folders are
            called; of others it does as far as they can be told from words.

    Raises LimnerError if there is no check.json to show.
    """
    told = read_json(folder / "check.json")
    if not isinstance(told, dict):
        raise LimnerError(
            f"{folder / 'check.json'}: there is nothing to show, or it is broken; "
            "`limner check-data CONFIG` writes it."
        )
    told = redacted(told, places, but=("caption", "captions"))
    sections = (
        headline(told),
        figures(told),
        findings(told),
        alike(folder, told),
        seen(folder, told),
        sizes(told),
        captions(told),
        details(told),
    )
    path = folder / "check.html"
    write_text_whole(path, page(title_of(told), "\n".join(s for s in sections if s)))
    return path


def title_of(told: dict[str, Any]) -> str:
    name = text(part(told, "dataset"), "name")
    return f"{name}: is it fit to be trained on?" if name else "Is it fit to be trained on?"


def headline(told: dict[str, Any]) -> str:
    about = text(part(told, "dataset"), "description")
    day = text(told, "created")[:10]
    return (
        f'<header><p class="eyebrow">Limner · check of the data{" · " + escape(day) if day else ""}'
        f'</p><h1>{escape(title_of(told))}</h1><p class="lead">{escape(verdict(told))}</p>'
        + (f"<p>{escape(about)}</p>" if about else "")
        + "</header>"
    )


def verdict(told: dict[str, Any]) -> str:
    counts = severities(told)
    if not any(counts.values()):
        return "Nothing is wrong with any row."
    said = [
        f"{count:,} {plural(count, 'finding')} {VERDICTS[severity]}"
        for severity, count in counts.items()
        if count
    ]
    return ", ".join(said) + "."


def severities(told: dict[str, Any]) -> dict[str, int]:
    counts = dict.fromkeys(VERDICTS, 0)
    for finding in rows(told, "findings"):
        severity = text(finding, "severity")
        counts[severity] = counts.get(severity, 0) + round(number(finding.get("count")) or 0)
    return counts


def figures(told: dict[str, Any]) -> str:
    about = part(told, "rows")
    cut = number(part(told, "pictures").get("mean_share_cut"))
    cards = [
        (name, f"{value:,.0f}", note)
        for name, value, note in (
            ("rows looked at", number(about.get("looked_at")), _of_used(about)),
            ("trained", number(about.get("trained")), ""),
            ("held out", number(about.get("held_out")), ""),
        )
        if value is not None
    ]
    if cut is not None:
        buckets = text(part(told, "settings"), "data.buckets")
        crop = "to the nearest of data.buckets" if buckets else "by the square crop"
        cards.append(("of a picture is cut away", f"{cut:.0%}", f"mean, {crop}"))
    shown = "".join(
        f'<div class="small"><dt>{escape(name)}</dt><dd>{escape(value)}</dd>'
        f'<dd class="note">{escape(note)}</dd></div>'
        for name, value, note in cards
    )
    thirds = " thirds" if len(cards) == 3 else ""
    if not shown:
        return ""
    return f'<section aria-label="Figures"><dl class="figures{thirds}">{shown}</dl></section>'


def _of_used(about: dict[str, Any]) -> str:
    used, seen_rows = number(about.get("used")), number(about.get("looked_at"))
    return f"of {used:,.0f}" if used and seen_rows and seen_rows < used else ""


def findings(told: dict[str, Any]) -> str:
    """Errors and warnings by their kind, each with its first rows a click away."""
    parts = []
    for finding in rows(told, "findings"):
        count = number(finding.get("count")) or 0
        first = rows(finding, "first")[:SHOWN]
        listed = "".join(_listed(row) for row in first)
        more = count - len(first)
        rest = f"<p class='note'>and {more:,.0f} more in problems.jsonl</p>" if more > 0 else ""
        parts.append(
            (
                f"{VERDICTS.get(text(finding, 'severity'), '')}: {text(finding, 'kind')}, "
                f"{count:,.0f}",
                f"<p>{escape(_sentence(text(finding, 'meaning')))} "
                f"{escape(text(finding, 'todo'))}</p>"
                f'<ol class="events">{listed}</ol>{rest}',
            )
        )
    return section("What was found", folded(parts), "The worst first. Open one to see its rows.")


def _listed(row: dict[str, Any]) -> str:
    key, said = text(row, "key"), text(row, "said")
    said = said.removeprefix(f"{key}: ")
    return f"<li><bdi>{escape(key)}</bdi><br><small>{escape(said)}</small></li>"


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}." if words else ""


def alike(folder: Path, told: dict[str, Any]) -> str:
    shown = []
    for pair in rows(told, "alike"):
        files, keys, words = (texts(pair, key) for key in ("files", "keys", "captions"))
        if not len(files) == len(keys) == len(words) == 2:
            continue
        images = "".join(
            picture(folder, name, f"{key}: {caption}", SAMPLE_SIDE)
            or '<span class="gone">missing</span>'
            for name, key, caption in zip(files, keys, words, strict=True)
        )
        said = "".join(
            f"<small><bdi>{escape(key)}</bdi>: <bdi>{escape(caption)}</bdi></small>"
            for key, caption in zip(keys, words, strict=True)
        )
        shown.append(
            f'<figure><div class="pair two">{images}</div>'
            f"<figcaption>{escape(text(pair, 'kind'))}{said}</figcaption></figure>"
        )
    return section(
        "Alike",
        f'<div class="pairs">{"".join(shown)}</div>' if shown else "",
        "The first pairs, the worst kind first. All are listed above.",
    )


def seen(folder: Path, told: dict[str, Any]) -> str:
    """Some rows as they are and as they are trained."""
    shown = []
    for sample in rows(told, "samples"):
        words = texts(sample, "captions")
        main = words[0] if words else ""
        images = "".join(
            picture(folder, sample.get(name), f"{what}: {main}", SAMPLE_SIDE)
            or '<span class="gone">missing</span>'
            for name, what in (("whole", "the original"), ("seen", "as it is trained"))
        )
        others = "".join(f"<small><bdi>{escape(other)}</bdi></small>" for other in words[1:4])
        shown.append(
            f'<figure><div class="pair two">{images}</div><figcaption><bdi>{escape(main)}</bdi>'
            f"{others}</figcaption></figure>"
        )
    settings = part(told, "settings")
    size = None if text(settings, "data.buckets") else number(settings.get("data.image_size"))
    note = "Left the original, what is cut away in grey; right what is trained"
    note += f", {size:.0f} × {size:.0f} pixels." if size else "."
    note += " A choice by training.seed."
    return section(
        "What the model will see",
        f'<div class="pairs">{"".join(shown)}</div>' if shown else "",
        escape(note),
    )


def sizes(told: dict[str, Any]) -> str:
    about = part(told, "pictures")
    parts = [
        (heading, bars(labelled(part(about, key), unit)))
        for heading, key, unit in (
            ("Shorter side, pixels", "shorter_side", "px"),
            ("Width by height", "width_by_height", ""),
        )
    ]
    for heading, key in (("Format", "formats"), ("Mode", "modes")):
        parts.append((heading, bars(_counts(part(about, key)))))
    return section("Pictures", _headed(parts))


def captions(told: dict[str, Any]) -> str:
    about = part(told, "captions")
    lengths: dict[str, Any] = {}
    for key in ("characters", "tokens"):
        found = part(about, key)
        if found:
            lengths[f"{key}: least, median, 95%, most"] = ", ".join(
                f"{number(found.get(name)) or 0:,.0f}"
                for name in ("least", "median", "p95", "most")
            )
    for name, key in (
        ("captions", "count"),
        ("rows with several", "rows_with_several"),
        ("cut by text_encoder.max_length", "cut"),
    ):
        value = number(about.get(key))
        if value is not None:
            lengths[name] = f"{value:,.0f}"
    if text(about, "tokens_by"):
        lengths["tokens by"] = text(about, "tokens_by")
    body = table("", lengths) if lengths else ""
    return section(
        "Captions",
        body + _headed([("Script of most letters", bars(_counts(part(about, "scripts"))))]),
    )


def labelled(histogram: dict[str, Any], unit: str) -> dict[str, float]:
    """{"below 16 px": 3, "16 to 31 px": 8, ...}, empty ones left out."""
    edges, counts = histogram.get("edges"), histogram.get("counts")
    if not (isinstance(edges, list) and isinstance(counts, list) and len(counts) == len(edges) + 1):
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


def bars(counts: dict[str, float]) -> str:
    total = sum(counts.values())
    shown = "".join(
        share_gauge(name, count / total, None, f"{count:,.0f}")
        for name, count in counts.items()
        if total
    )
    return f'<div class="shares">{shown}</div>' if shown else ""


def _headed(parts: list[tuple[str, str]]) -> str:
    return "".join(f"<h3>{escape(name)}</h3>{body}" for name, body in parts if body)


def details(told: dict[str, Any]) -> str:
    settings = {key: value for key, value in part(told, "settings").items() if value is not None}
    return section("How it was looked at", table("", settings) if settings else "")
