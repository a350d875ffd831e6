"""`evaluation.html`: one file that says how good a model is, how sure that is, and how to redo it.

It is read from `evaluation.json` and the pictures beside it alone. Whatever is not there, or is not
what it should be, is left out: a page can always be made.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from limner.errors import LimnerError
from limner.files.atomic import write_text_whole
from limner.redaction import redacted
from limner.reports.gauges import between, distance_gauge, figure, is_number, share_gauge
from limner.reports.html import (
    SAMPLE_SIDE,
    chart,
    command_block,
    drawn_pictures,
    folded,
    in_words,
    page,
    picture,
    rank_explained,
    rounded,
    section,
    table,
)
from limner.reports.line_chart import Points
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
    """Writes `evaluation.html` into `folder`, all pictures inside it, and returns its path.

    Raises LimnerError if there is no evaluation.json to show.
    """
    folder = Path(folder)
    told = read_json(folder / "evaluation.json")
    if not isinstance(told, dict):
        raise LimnerError(
            f"{folder / 'evaluation.json'}: there is no evaluation to show, or it is broken; "
            "`limner evaluate CHECKPOINT` writes one."
        )
    told = redacted(told, but=("prompt", "caption"))
    sections = (
        headline(told),
        figures(told),
        known(told),
        distances(told),
        shares(told),
        held_out_loss(told),
        drawn(folder, told),
        memorisation(folder, told),
        how(told),
        details(told),
        again(told),
    )
    path = folder / "evaluation.html"
    write_text_whole(path, page(title_of(told), "\n".join(s for s in sections if s)))
    return path


# ---- sections ----------------------------------------------------------------------------------


def title_of(told: dict[str, Any]) -> str:
    name = text(part(told, "dataset"), "name")
    return f"{name}: how well does it draw?" if name else "How well does it draw?"


def headline(told: dict[str, Any]) -> str:
    checkpoint, dataset = part(told, "checkpoint"), part(told, "dataset")
    size, step, seen = (number(checkpoint.get(key)) for key in ("parameters", "step", "images"))
    model = f"{rounded(size)}-parameter " if size else ""
    after = f" after {seen:,.0f} pictures" if seen else ""
    after += f" (step {step:,.0f})" if step else ""
    where = f" Measured on {text(told, 'device')}" if text(told, "device") else ""
    when = f"{' on ' if where else ' Measured on '}{day(told)}" if day(told) else ""
    stop = "." if where or when else ""
    about = text(dataset, "description")
    counts = [
        f"{count:,.0f} {name}"
        for name, count in (
            ("trained", number(dataset.get("trained"))),
            ("held out", number(dataset.get("held_out"))),
        )
        if count is not None
    ]
    about += f" {' and '.join(counts)}." if counts else ""
    return (
        f'<header><p class="eyebrow">Limner · evaluation</p><h1>{escape(title_of(told))}</h1>'
        f'<p class="lead">A {escape(model)}text-to-image Diffusion Transformer{escape(after)}.'
        f"{escape(where + when + stop)}</p>"
        + (f"<p>{escape(about.strip())}</p>" if about.strip() else "")
        + "</header>"
    )


def day(told: dict[str, Any]) -> str:
    return text(told, "created")[:10]


def figures(told: dict[str, Any]) -> str:
    """The numbers that people ask for first."""
    large: list[tuple[str, str, str]] = []
    small: list[tuple[str, str, str]] = []
    for split, about, value in of_splits(told, "recall", "at_1"):
        name = f"of {split.replace(' ', '-')} prompts have the true picture nearest"
        large.append((name, f"{value:.0%}", said(about, "at_1")))
    for split, about, value in of_splits(told, "checker", "all_right"):
        name = f"of {split.replace(' ', '-')} prompts are drawn fully right"
        large.append((name, f"{value:.0%}", said(about, "all_right")))
    for metric in rows(told, "metrics")[:4]:
        found, floor = number(metric.get("value")), number(metric.get("floor"))
        if found is None:
            continue
        notes = [between(interval(metric))]
        notes.append(f"real against real {figure(floor)}" if floor is not None else "")
        note = "; ".join(filter(None, notes))
        small.append((str(metric.get("name", "distance")), figure(found), note))
    copying = part(told, "memorisation").get("ratio")
    ratio = number(copying)
    if ratio is not None:
        note = between(interval(copying)) or "1: as new as held-out pictures; 0: copies"
        small.append(("distance to the nearest trained picture", f"{ratio:.2f}×", note))
    noise = part(told, "flat_region_std")
    if (drawn_noise := number(noise.get("drawn"))) is not None:
        real = number(noise.get("real"))
        note = "standard deviation, of 255" + (f"; real {real:.1f}" if real is not None else "")
        small.append(("noise in flat parts", f"{drawn_noise:.1f}", note))
    gap = number(part(told, "held_out_loss").get("gap"))
    if gap is not None:
        losses = part(told, "held_out_loss")
        of = between(interval({"interval": losses.get("gap_interval")}))
        note = "; ".join(filter(None, ["held-out loss less trained loss", of]))
        small.append(("gap of the losses", figure(gap), note))
    cards = [("wide", *card) for card in large[:2]] + [("small", *card) for card in small]
    shown = "".join(
        f'<div class="{size}"><dt>{escape(name)}</dt><dd>{escape(value)}</dd>'
        f'<dd class="note">{escape(note)}</dd></div>'
        for size, name, value, note in cards
    )
    if not shown:
        return ""
    thirds = " thirds" if len(small) in (3, 5, 6) else ""  # so that no row is nearly empty
    return f'<section aria-label="Figures"><dl class="figures{thirds}">{shown}</dl></section>'


def said(about: dict[str, Any], key: str) -> str:
    """81 of 90; 95% interval 82% to 95%; among the five nearest 97%"""
    count, value, five = number(about.get("count")), number(about.get(key)), None
    if key == "at_1":
        five = number(about.get("at_5"))
    pieces = [
        f"{round(value * count)} of {count:,.0f}" if count and value is not None else "",
        between(share_interval(about, key, count), percent=True),
        f"among the five nearest {five:.0%}" if five is not None else "",
    ]
    return "; ".join(filter(None, pieces))


def known(told: dict[str, Any]) -> str:
    """What people should know before they quote a number."""
    events = texts(told, "events")
    if not events:
        return ""
    items = "".join(f"<li>{escape(event)}</li>" for event in events)
    return f'<aside class="known"><h2>Before you quote these numbers</h2><ul>{items}</ul></aside>'


def distances(told: dict[str, Any]) -> str:
    gauges = []
    for metric in rows(told, "metrics"):
        value, floor = number(metric.get("value")), part(metric, "floor")
        if value is None:
            continue
        several = floor.get("values")
        gauges.append(
            distance_gauge(
                str(metric.get("name", "distance")),
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
    note = (
        "Blue: what was drawn, the band its 95% interval. Green: the floor, other real pictures in "
        "the place of the drawn ones; thin lines are its repeats. A perfect model is expected "
        "there, where the counts are the same."
    )
    body = f'<div class="gauges">{"".join(gauges)}</div>' if gauges else ""
    return section("Compared with real pictures", body, note)


def counted(counts: Any) -> str:
    """[259, 3694] -> "259 against 3,694 pictures"; "" if that is not known."""
    if not isinstance(counts, list) or len(counts) != 2 or not all(map(is_number, counts)):
        return ""
    return f"{counts[0]:,.0f} against {counts[1]:,.0f} pictures"


def shares(told: dict[str, Any]) -> str:
    """Recall and what the checker read back, with their intervals."""
    bars: list[str] = []
    note = ""
    for split, about, _ in of_splits(told, "recall", "at_1"):
        note = (
            "Each drawn picture is compared with every picture in the range: is the one that its "
            "prompt names the nearest? "
        )
        if text(about, "range"):
            note += f"The range: {text(about, 'range').rstrip('.')}. "
        for key, what in (("at_1", "nearest"), ("at_5", "among the five nearest")):
            bars += share_of(about, key, f"{split}: {what}")
    for split, about, _ in of_splits(told, "checker", "all_right"):
        if "reads each" not in note:
            note += (
                "A program reads each drawn picture back and compares it with its prompt, part by "
                "part; fully right means in all parts."
            )
        bars += share_of(about, "all_right", f"{split}: fully right")
        for name in part(about, "by_part"):
            bars += share_of(part(about, "by_part"), name, f"{split}: {name}", about.get("count"))
    body = f'<div class="shares">{"".join(bars)}</div>' if bars else ""
    return section("Does it draw what was asked?", body, escape(note))


def share_of(about: dict[str, Any], key: str, name: str, count: Any = None) -> list[str]:
    value, total = number(about.get(key)), number(count or about.get("count"))
    if value is None:
        return []
    note = f"{round(value * total)} of {total:,.0f}" if total else ""
    return [share_gauge(name, value, share_interval(about, key, total), note)]


def held_out_loss(told: dict[str, Any]) -> str:
    losses = part(told, "held_out_loss")
    series: dict[str, Points] = {}
    for split in SPLITS:
        levels = [(as_number(level), number(x)) for level, x in of_split(losses, split).items()]
        points = sorted((at, x) for at, x in levels if at is not None and x is not None)
        if points:
            series[split] = points
    if not series:
        return ""
    most = max(x for points in series.values() for x, _ in points)
    noise = "1" if most <= 1 else "1000"
    count, trained = number(losses.get("count")), number(losses.get("trained_count"))
    if count and trained:
        of = f" Of {count:,.0f} held-out and {trained:,.0f} trained pictures."
    else:
        of = f" Of {count:,.0f} pictures of either kind." if count else ""
    shown = chart(
        series,
        "Loss by noise level",
        f"time of the noise (0: clean, {noise}: noise)",
        "loss (log scale)",
        f"The same grid of noise levels and the same noise for both.{of} Where the held-out line "
        "lies well above the trained one, the model has learned by heart.",
    )
    return section("Loss by noise level", f'<div class="charts one">{shown}</div>')


def as_number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if is_number(value) else None


def drawn(folder: Path, told: dict[str, Any]) -> str:
    samples = rows(told, "pictures")
    body = drawn_pictures(folder, samples)
    return section("What it draws", body, rank_explained(samples)) if body else ""


def memorisation(folder: Path, told: dict[str, Any]) -> str:
    """The drawings most like a trained picture, beside it."""
    about = part(told, "memorisation")
    if not about:
        return ""
    verdict = text(about, "verdict")
    verdict = f'<p class="lead">{escape(verdict)}</p>' if verdict else ""
    worst = "".join(pair(folder, case) for case in rows(about, "worst"))
    if worst:
        worst = (
            "<h3>The nearest pairs <small>· left what was drawn, right the trained picture nearest "
            f'to it</small></h3><div class="pairs">{worst}</div>'
        )
    count, split = number(about.get("count")), text(about, "split")
    of = f" of {split.replace(' ', '-')} prompts" if split else ""
    note = f"{count:,.0f} drawings{of}. " if count else ""
    note += "The ratio compares with how far real pictures that were not trained on are from their "
    note += "nearest trained one: 1 is as new as those, 0 is a copy. Where the real picture of a "
    note += "prompt is itself nearer than most, the comparison is with that one."
    if text(about, "space"):
        note += f" Distance: {text(about, 'space').rstrip('.')}."
    if not verdict + worst:
        return ""
    return section("Does it copy?", f'{verdict}<p class="note">{escape(note)}</p>{worst}')


def pair(folder: Path, case: dict[str, Any]) -> str:
    prompt, caption = text(case, "prompt"), text(case, "caption")
    images = "".join(
        picture(folder, name, alt, SAMPLE_SIDE) or '<span class="gone">missing</span>'
        for name, alt in (
            (case.get("drawn"), f"drawn: {prompt}"),
            (case.get("trained"), f"trained: {caption}"),
        )
    )
    # Where the caption's own real picture has a near twin, its distance is what counts.
    ratios = [number(case.get(key)) for key in ("ratio", "own_ratio")]
    ratio = max((r for r in ratios if r is not None), default=None)
    told = [
        (f"{what} {figure(x)}")
        for what, x in (
            ("apart by", number(case.get("distance"))),
            ("real ones by", number(case.get("usual"))),
            ("this prompt's real one by", number(case.get("own"))),
        )
        if x is not None
    ]
    small = "; ".join(told)
    words = f"<bdi>{escape(prompt) or '(empty prompt)'}</bdi>"
    if caption:
        words += f" <small>trained: <bdi>{escape(caption)}</bdi></small>"
    shown = f"<b>{ratio:.2f}×</b> " if ratio is not None else ""
    return (
        f'<figure><div class="pair two">{images}</div>'
        f"<figcaption>{shown}{words}<small>{small}</small></figcaption></figure>"
    )


def how(told: dict[str, Any]) -> str:
    """The protocol: all that must be equal for two numbers to be compared."""
    protocol = part(told, "protocol")
    single = [
        (str(metric.get("name", "distance")), table("", about_metric(metric)))
        for metric in rows(told, "metrics")
    ]
    groups: dict[str, dict[str, Any]] = {}
    for key, value in protocol.items():
        group, dot, name = key.partition(".")
        groups.setdefault(group if dot else "", {})[name if dot else key] = value
    tables = "".join(table(group, values) for group, values in groups.items())
    body = f'<div class="settings">{tables}</div>' if tables else ""
    note = (
        "Two evaluations can be compared where all of this is equal; "
        "<code>limner evaluate --compare</code> refuses them where it is not."
    )
    return section("How every number was made", body + folded(single), note)


def about_metric(metric: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    if counted(metric.get("counts")):
        shown["drawn against reference"] = counted(metric.get("counts"))
    for key in ("interval_by", "std"):
        if metric.get(key) is not None:
            shown[key.replace("_", " ")] = metric[key]
    floor = part(metric, "floor")
    if counted(floor.get("counts")):
        values = in_words(floor.get("values"))
        shown["floor, real against real"] = f"{counted(floor.get('counts'))}: {values}"
    for key in ("network", "reference"):
        about = metric.get(key)
        for name, value in about.items() if isinstance(about, dict) else ():
            if not isinstance(value, dict):  # what the cache is found by says it all again
                shown[f"{key}: {name}"] = value
    return shown


def details(told: dict[str, Any]) -> str:
    refused = {str(row.get("key", "?")): row.get("reason", "") for row in rows(told, "refused")}
    parts = [
        (name, table("", values))
        for name, values in (
            ("Checkpoint", part(told, "checkpoint")),
            ("Versions", part(told, "versions")),
            (f"Rows that could not be used: {len(refused)}", refused),
        )
        if values
    ]
    return section("Details", folded(parts))


def again(told: dict[str, Any]) -> str:
    command = text(told, "command")
    return section("Make it again", command_block(command) if command else "")
