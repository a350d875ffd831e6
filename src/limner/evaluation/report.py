"""`report.html`: one file that says what a run learned, how that was measured, and how to redo it.

It is read from the files in the run folder alone, so it can be written at any moment of a run and
again later. Whatever is not there yet is left out.
"""

from __future__ import annotations

import base64
import io
import json
import math
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from limner.config import SamplingConfig
from limner.errors import LimnerError
from limner.evaluation.curves import Points, format_tick, line_chart
from limner.evaluation.run_folder import Run, read_run
from limner.training.progress import format_duration

MAX_PREVIEWS = 8
MAX_POINTS = 300  # of a curve: more than the chart has pixels for would only make the file large
MAX_AS_IS = 64_000  # bytes; larger pictures are shrunk, so that the report can be sent by mail
SAMPLE_SIDE, PREVIEW_SIDE = 256, 1000  # pixels, longest side after shrinking

TOLD = {"scheduler_type", "num_inference_steps", "guidance_scale"}
"""Of how it was drawn, what is told in any case; the rest where it is not as usual."""

SPLITS = {  # `split` in samples.json and results.json -> heading, explanation
    "trained": ("Trained prompts", "the model has seen these pictures with these words"),
    "held out": ("Held-out prompts", "never trained on; the real picture is shown beside each"),
    "free": ("Free prompts", "there is no real picture to compare with"),
}


def write_report(run_folder: Path) -> Path:
    """Writes `report.html` into `run_folder`, all pictures inside it, and returns its path.

    Raises LimnerError if there is no such folder.
    """
    run_folder = Path(run_folder)
    if not run_folder.is_dir():
        raise LimnerError(f"{run_folder}: there is no such run folder to report on.")
    run = read_run(run_folder)
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
    path.write_text(page(title_of(run), "\n".join(s for s in sections if s)), encoding="utf-8")
    return path


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
    return (
        f'<header><p class="eyebrow">Limner · run report</p><h1>{escape(title_of(run))}</h1>'
        f'<p class="lead">A {escape(model)}text-to-image Diffusion Transformer, trained from '
        f"scratch{escape(time)}{escape(device)}.{escape(seen)}</p>"
        + (f"<p>{escape(about)}</p>" if about else "")
        + "</header>"
    )


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
    parts = []
    for split, (heading, meaning) in SPLITS.items():
        mine = [sample for sample in run.samples if sample.get("split") == split]
        if not mine:
            continue
        single = "" if any(sample.get("truth") for sample in mine) else " single"
        shown = "".join(sample_figure(run.folder, sample) for sample in mine)
        parts.append(
            f"<h3>{heading} <small>· {len(mine)}; {meaning}</small></h3>"
            f'<div class="pictures{single}">{shown}</div>'
        )
    if not parts:
        return ""
    sampling = run.results.get("sampling", {})
    usual = SamplingConfig().model_dump(mode="json", exclude=TOLD)
    told = {key: value for key, value in sampling.items() if usual.get(key) != value}
    how = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in told.items())
    note = f"Drawn with {escape(how)}. " if how else ""
    if any(sample.get("rank") is not None for sample in run.samples):
        note += (
            "“✓ nearest”: of all pictures in the range the true one is nearest to the drawn one; "
            "“rank 3”: two others are nearer."
        )
    note = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>What it draws</h2>{note}{''.join(parts)}</section>"


def sample_figure(folder: Path, sample: dict[str, Any]) -> str:
    prompt, seed = str(sample.get("prompt", "")), sample.get("seed")
    body = picture(folder, sample.get("file"), f"drawn: {prompt}", SAMPLE_SIDE)
    body = body or '<span class="gone">missing</span>'
    truth = picture(folder, sample.get("truth"), f"real: {prompt}", SAMPLE_SIDE, "real")
    if truth:
        body += f"<span>{truth}real</span>"
    rank = sample.get("rank")
    verdict = ""
    if rank == 1:
        verdict = '<small class="good">✓ nearest</small>'
    elif rank is not None:
        verdict = f"<small>rank {escape(str(rank))}</small>"
    elif sample.get("right") is not None:
        right = '<small class="good">✓ right</small>'
        verdict = right if sample["right"] else "<small>not fully right</small>"
    title = f' title="seed {escape(str(seed))}"' if seed is not None else ""
    words = escape(prompt) or "(empty prompt)"
    return (
        f'<figure{title}><div class="pair">{body}</div>'
        f"<figcaption><bdi>{words}</bdi>{verdict}</figcaption></figure>"
    )


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
        figures += f"<figure>{image}<figcaption>step {step:,}{note}</figcaption></figure>"
    if not figures:
        return ""
    return (
        '<section><h2>As it learned</h2><p class="note">The same prompts and the same noise '
        f'each time.</p><div class="previews{" strips" if wide else ""}">{figures}</div></section>'
    )


def curves(run: Run) -> str:
    """Loss over the pictures seen, and by noise level."""
    if not run.train and not run.heldout:
        return ""
    losses: dict[str, Points] = {
        "each step": evenly(smoothed(points(run.train, "loss")), MAX_POINTS),
        "held out": points(run.heldout, "loss"),
        "trained": points(run.heldout, "train_loss"),
    }
    charts = [
        (
            line_chart(
                losses, "Loss over pictures seen", "pictures seen", "loss (log scale)", log_y=True
            ),
            "“each step” is the loss of the training steps, smoothed. “held out” and “trained” are "
            "measured on pictures of either kind with one fixed grid of noise levels and noise: "
            "compare these two. A gap that widens means learning by heart.",
        )
    ]
    levels: dict[str, Points] = {}
    for line in run.heldout:
        by_level = line.get("loss_by_level") or {}
        for level in by_level:
            levels.setdefault(f"t = {level}", []).extend(points([line | by_level], level))
    if levels:
        title = "Held-out loss by noise level"
        charts.append(
            (
                line_chart(levels, title, "pictures seen", "loss (log scale)", log_y=True),
                "t is the time of the noise: 0 is the clean picture, 1000 is noise alone. High t "
                "is where the composition is decided, low t where the detail is.",
            )
        )
    shown = "".join(
        f"<figure>{svg}<figcaption>{escape(note)}</figcaption></figure>" for svg, note in charts
    )
    return f'<section><h2>Learning curves</h2><div class="charts">{shown}</div></section>'


def what_happened(run: Run) -> str:
    if not run.events:
        return ""
    items = "".join(
        f"<li><small>step {escape(str(event.get('step', '?')))}, "
        f"{format_duration(event.get('seconds'))}</small>"
        f"{escape(str(event.get('message', '')))}</li>"
        for event in run.events
    )
    return f'<section><h2>What happened on the way</h2><ol class="events">{items}</ol></section>'


def details(run: Run) -> str:
    """Settings, versions and refused rows, folded away."""
    parts = []
    if run.config:
        general = {k: v for k, v in run.config.items() if not isinstance(v, dict)}
        groups = {"general": general} if general else {}
        groups |= {k: v for k, v in run.config.items() if isinstance(v, dict)}
        tables = "".join(table(name, values) for name, values in groups.items())
        parts.append(("Settings", f'<div class="settings">{tables}</div>'))
    versions = run.results.get("versions")
    if versions:
        parts.append(("Versions", table("", versions)))
    if run.refused:
        rows = {str(line.get("key", "?")): line.get("reason", "") for line in run.refused}
        parts.append((f"Rows that could not be used: {len(run.refused)}", table("", rows)))
    if not parts:
        return ""
    folded = "".join(
        f"<details><summary>{escape(name)}</summary>{body}</details>" for name, body in parts
    )
    return f"<section><h2>Details</h2>{folded}</section>"


def again(run: Run) -> str:
    command = run.results.get("command")
    if not command:
        return ""
    text = escape(str(command))
    return f"<section><h2>Make it again</h2><pre><code>{text}</code></pre></section>"


# ---- parts -------------------------------------------------------------------------------------


def page(title: str, body: str) -> str:
    style = files("limner.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def table(caption: str, values: dict[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(str(key))}</th><td>{escape(in_words(value))}</td></tr>'
        for key, value in values.items()
    )
    head = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{head}<tbody>{rows}</tbody></table>"


def of_count(share: float, count: int) -> str:
    """0.9, 60 -> 54 of 60 (95% interval 80% to 95%)"""
    low, high = wilson(share, count)
    return f"{round(share * count)} of {count} (95% interval {low:.0%} to {high:.0%})"


def rounded(count: float) -> str:
    """7612416 -> 7.61M"""
    return format_tick(float(f"{count:.3g}"))


def in_words(value: Any) -> str:
    """A setting as it is written in YAML."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def picture(
    folder: Path, name: str | Path | None, alt: str, longest_side: int, css_class: str = ""
) -> str:
    """An `<img>` that carries its bytes, or "" if there is no such picture."""
    if not name:
        return ""
    path = folder / name
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            media = Image.MIME.get(image.format or "", "")
            if len(data) > MAX_AS_IS or not media.startswith("image/"):
                small = image.convert("RGB")
                small.thumbnail((longest_side, longest_side))
                buffer = io.BytesIO()
                small.save(buffer, format="JPEG", quality=88)
                data, media = buffer.getvalue(), "image/jpeg"
    except (OSError, ValueError):
        return ""
    attribute = f' class="{css_class}"' if css_class else ""
    return (
        f'<img{attribute} src="data:{media};base64,{base64.b64encode(data).decode("ascii")}" '
        f'width="{width}" height="{height}" alt="{escape(alt)}">'
    )


def evenly(items: list[Any], most: int) -> list[Any]:
    """At most `most` of `items`, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]


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


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson, JASA 22, 1927)."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    spread = math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    half = z * spread / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)
