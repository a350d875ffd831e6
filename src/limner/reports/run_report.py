"""`report.html`: one file that says what a run learned, how that was measured, and how to redo it.

It is read from the files in the run folder alone, so it can be written at any moment of a run and
again later. Whatever is not there yet is left out.
"""

from __future__ import annotations

import math
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from limner.checkpoint.lineage import before_in_words
from limner.config import SamplingConfig
from limner.console import format_duration
from limner.errors import LimnerError
from limner.files.atomic import write_text_whole
from limner.redaction import places_of, redacted, redacted_settings
from limner.reports.html import (
    chart,
    command_block,
    drawn_pictures,
    evenly,
    folded,
    of_count,
    page,
    picture,
    rank_explained,
    rounded,
    section,
    table,
)
from limner.reports.line_chart import Points
from limner.reports.run_folder import Run, read_run

MAX_PREVIEWS = 8
MAX_POINTS = 300  # of a curve: more than the chart has pixels for would only make the file large
PREVIEW_SIDE = 1000  # pixels, longest side after shrinking

TOLD = {"scheduler_type", "num_inference_steps", "guidance_scale"}
"""Of how it was drawn, what is told in any case; the rest where it is not as usual."""


def write_report(run_folder: Path) -> Path:
    """Writes `report.html` into `run_folder`, all pictures inside it, and returns its path.

    Raises LimnerError if there is no such folder.
    """
    run_folder = Path(run_folder)
    if not run_folder.is_dir():
        raise LimnerError(f"{run_folder}: there is no such run folder to report on.")
    run = shared(read_run(run_folder))
    sections = (
        headline(run),
        measured(run),
        drawn(run),
        previews(run),
        curves(run),
        what_happened(run),
        details(run),
        again(run),
    )
    path = run_folder / "report.html"
    write_text_whole(path, page(title_of(run), "\n".join(s for s in sections if s)))
    return path


def shared(run: Run) -> Run:
    """The same as the page may say it: it is sent to others."""
    places = places_of(run.config)
    return replace(
        run,
        config=redacted_settings(run.config),
        events=redacted(run.events, places),
        results=redacted(run.results, places),
        refused=redacted(run.refused, places),
    )


# ---- sections ----------------------------------------------------------------------------------


def title_of(run: Run) -> str:
    name = (run.config.get("data") or {}).get("dataset_name") or run.folder.resolve().name
    return f"{name}: from words to pictures"


def headline(run: Run) -> str:
    results, last = run.results, (run.train or [{}])[-1]
    size = results.get("parameters")
    model = f"{rounded(size)}-parameter " if size else ""
    minutes = results.get("minutes") or last.get("seconds", 0) / 60
    time = f" for {format_duration(minutes * 60)}" if minutes else ""
    device = f" on {results['device']}" if results.get("device") else ""
    seen = f" It saw {last['images']:,} pictures in {last['step']:,} steps." if run.train else ""
    about = results.get("dataset", {}).get("description", "")
    before = " ".join(before_in_words(run.lineage)) if run.lineage else ""
    return (
        f'<header><p class="eyebrow">Limner · run report</p><h1>{escape(title_of(run))}</h1>'
        f'<p class="lead">A {escape(model)}text-to-image Diffusion Transformer, '
        f"{escape(trained(run))}{escape(time)}{escape(device)}.{escape(seen)}</p>"
        + (f"<p>{escape(about)}</p>" if about else "")
        + (f"<p>{escape(before)}</p>" if before else "")
        + "</header>"
    )


def trained(run: Run) -> str:
    """How its training began."""
    training, lora = run.config.get("training") or {}, run.config.get("lora") or {}
    base = run.lineage.base if run.lineage else None
    begun = (base.model or base.name) if base else None
    if base is None and not run.lineage:
        begun = training.get("init_from")  # the last name, or a Hub id
    if base is None and not begun:
        return "trained from scratch"
    how = f" by LoRA of rank {lora['rank']}" if lora.get("rank") else ""
    return f"fine-tuned{how} from {begun or 'another model'}"


def measured(run: Run) -> str:
    """The figures that people ask for first, and what they mean."""
    results, cards = run.results, []
    recall = {k: v for k, v in results.get("recall", {}).items() if v.get("count")}
    for split, found in recall.items():
        name = f"of {split.replace(' ', '-')} prompts have the true picture nearest"
        note = of_count(found["at_1"], found["count"])
        if "at_5" in found:
            note += f"; among the five nearest: {found['at_5']:.0%}"
        cards.append((name, f"{found['at_1']:.0%}", note))
    checked = {k: v for k, v in results.get("checker", {}).items() if v.get("count")}
    for split, found in checked.items():
        name = f"of {split.replace(' ', '-')} prompts are drawn fully right"
        parts = [f"{part} {share:.0%}" for part, share in found.get("by_part", {}).items()]
        note = "; ".join([of_count(found["all_right"], found["count"]), ", ".join(parts)])
        cards.append((name, f"{found['all_right']:.0%}", note.removesuffix("; ")))
    main_cards = len(cards)
    if (speckle := results.get("flat_region_std")) and "drawn" in speckle:
        note = f"of 255; {speckle['real']:.1f} in the real pictures"
        if speckle.get("visible"):
            note += ": noise has stayed in the pictures"
        cards.append(("noise in flat parts", f"{speckle['drawn']:.1f}", note))
    speed = results.get("speed", {})
    if speed.get("images_per_second"):
        cards.append(("images per second", f"{speed['images_per_second']:.1f}", "while training"))
    if speed.get("mfu") is not None:
        peak = speed.get("matmul_peak_gflops")
        of = f"share of {peak:,.0f} GFLOP/s, the matmul peak measured here" if peak else ""
        cards.append(("of peak speed (MFU)", f"{speed['mfu']:.0%}", of))
    if results.get("parameters"):
        size = results["parameters"]
        cards.append(("parameters", rounded(size), f"{size:,}"))
    losses = [line for line in run.heldout if isinstance(line.get("loss"), int | float)]
    if losses:
        at = f"at step {losses[-1]['step']:,}"
        cards.append(("held-out loss", f"{losses[-1]['loss']:.3f}", at))
    if not cards:
        return ""
    shown = "".join(
        f'<div class="{"wide" if k < main_cards else "small"}"><dt>{escape(name)}</dt>'
        f'<dd>{escape(value)}</dd><dd class="note">{escape(note)}</dd></div>'
        for k, (name, value, note) in enumerate(cards)
    )
    how = ""
    if recall:
        how = '<p class="note">Each drawn picture is compared with every picture in the range.'
        for name, label in (("range", "The range"), ("distance", "Distance")):
            if results.get(name):
                how += f" {label}: {escape(str(results[name]).rstrip('.'))}."
        how += "</p>"
    if checked:
        how += (
            '<p class="note">A program reads each drawn picture back and compares it with its '
            "prompt, part by part; fully right means in all parts.</p>"
        )
    return f'<section aria-label="Figures"><dl class="figures">{shown}</dl>{how}</section>'


def drawn(run: Run) -> str:
    """What the finished model drew, split by split."""
    body = drawn_pictures(run.folder, run.samples)
    if not body:
        return ""
    sampling = run.results.get("sampling", {})
    usual = SamplingConfig().model_dump(mode="json", exclude=TOLD)
    told = {key: value for key, value in sampling.items() if usual.get(key) != value}
    how = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in told.items())
    note = f"Drawn with {escape(how)}. " if how else ""
    step, last = run.results.get("steps"), (run.train or [{}])[-1].get("step")
    if isinstance(step, int) and isinstance(last, int) and step < last:
        note += f"Drawn and measured at step {step:,}, of the {last:,} that the run has done. "
    note += rank_explained(run.samples)
    return section("What it draws", body, note)


def previews(run: Run) -> str:
    """The same prompts and seeds as the model learned."""
    shots = evenly(run.previews, MAX_PREVIEWS)
    figures, wide = "", False
    for step, path in shots:
        image = picture(run.folder, path.relative_to(run.folder), f"step {step}", PREVIEW_SIDE)
        if not image:
            continue
        with Image.open(path) as opened:
            wide = wide or opened.width > 2.5 * opened.height
        seen = [line["images"] for line in run.train if line["step"] <= step]
        note = f" · {seen[-1]:,} pictures seen" if seen else ""
        figures += (
            f'<figure><div class="scroll" tabindex="0">{image}</div>'
            f"<figcaption>step {step:,}{note}</figcaption></figure>"
        )
    if not figures:
        return ""
    body = f'<div class="previews{" strips" if wide else ""}">{figures}</div>'
    return section("As it learned", body, "The same prompts and the same noise each time.")


def curves(run: Run) -> str:
    """Loss over the pictures seen, and by noise level."""
    if not run.train and not run.heldout:
        return ""
    losses: dict[str, Points] = {
        "each step": evenly(smoothed(points(run.train, "loss")), MAX_POINTS),
        "held out": points(run.heldout, "loss"),
        "trained": points(run.heldout, "train_loss"),
    }
    charts = chart(
        losses,
        "Loss over pictures seen",
        "pictures seen",
        "loss (log scale)",
        "“each step” is the loss of the training steps, smoothed. “held out” and “trained” are "
        "measured on pictures of either kind with one fixed grid of noise levels and noise: "
        "compare these two. A gap that widens means learning by heart.",
    )
    levels: dict[str, Points] = {}
    for line in run.heldout:
        by_level = line.get("loss_by_level") or {}
        for level in by_level:
            levels.setdefault(f"t = {level}", []).extend(points([line | by_level], level))
    if levels:
        charts += chart(
            levels,
            "Held-out loss by noise level",
            "pictures seen",
            "loss (log scale)",
            "t is the time of the noise: 0 is the clean picture, 1000 is noise alone. High t "
            "is where the composition is decided, low t where the detail is.",
        )
    return section("Learning curves", f'<div class="charts">{charts}</div>')


def what_happened(run: Run) -> str:
    if not run.events:
        return ""
    items = "".join(
        f"<li><small>step {escape(str(event.get('step', '?')))}, "
        f"{format_duration(event.get('seconds'))}</small>"
        f"{escape(str(event.get('message', '')))}</li>"
        for event in run.events
    )
    return section("What happened on the way", f'<ol class="events">{items}</ol>')


def details(run: Run) -> str:
    """Settings, versions and refused rows, folded away."""
    parts = []
    if run.config:
        general = {k: v for k, v in run.config.items() if not isinstance(v, dict)}
        groups = {"general": general} if general else {}
        groups |= {k: v for k, v in run.config.items() if isinstance(v, dict)}
        tables = "".join(table(name, values) for name, values in groups.items())
        parts.append(("Settings", f'<div class="settings">{tables}</div>'))
    if run.buckets:
        sizes = {
            f"{bucket['width']} × {bucket['height']}": f"{bucket['trained']:,} pictures trained, "
            f"{bucket['held_out']:,} held out"
            for bucket in run.buckets
        }
        parts.append((f"Sizes of pictures: {len(sizes)}", table("", sizes)))
    versions = run.results.get("versions")
    if versions:
        parts.append(("Versions", table("", versions)))
    if run.refused:
        rows = {str(line.get("key", "?")): line.get("reason", "") for line in run.refused}
        parts.append((f"Rows that could not be used: {len(run.refused)}", table("", rows)))
    return section("Details", folded(parts))


def again(run: Run) -> str:
    command = run.results.get("command")
    return section("Make it again", command_block(str(command)) if command else "")


# ---- curves of a run -----------------------------------------------------------------------------


def points(lines: list[dict[str, Any]], key: str) -> Points:
    """(pictures seen, value) of each line; NaN, which a chart leaves out, where it has none."""
    pairs = ((line.get("images"), line.get(key)) for line in lines)
    return [
        (x, y) if isinstance(y, int | float) else (x, math.nan) for x, y in pairs if x is not None
    ]


def smoothed(curve: Points) -> Points:
    """Each y as the mean of its neighbourhood: 1/30 of the curve on either side."""
    reach = len(curve) // 30
    means = []
    for i, (x, _) in enumerate(curve):
        near = [y for _, y in curve[max(0, i - reach) : i + reach + 1] if math.isfinite(y)]
        means.append((x, sum(near) / len(near) if near else math.nan))
    return means
