"""`report.html`: the results of a run, how they were measured, and how to reproduce them.

It is built from the files in the run folder only, so it can be written at any time during a run and
again later. Missing parts are left out.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from markupsafe import Markup

from limner.checkpoint.lineage import before_in_words
from limner.config import SamplingConfig
from limner.errors import LimnerError
from limner.evaluation.splits import adjective
from limner.files.atomic import replacing
from limner.messages import parameters_in_words
from limner.metrics.interval import wilson
from limner.redaction import places_of, redacted, redacted_settings
from limner.reports.embedded_images import EmbeddedImage, drawn_images, embed_film, embed_image
from limner.reports.film import film_of
from limner.reports.gauges import is_number
from limner.reports.line_chart import Points
from limner.reports.page import Card, chart, write_from
from limner.reports.read_results import number, part, text
from limner.reports.run_folder import Run, evenly, images_per_second, read_run

MAX_PREVIEWS = 8
MAX_POINTS = 300  # per curve; more than the chart has pixels for would only enlarge the file
PREVIEW_SIDE = 1000  # pixels, longest side after downscaling
FILM = "film.webp"

TOLD = {"scheduler_type", "num_inference_steps", "guidance_scale"}
"""Sampling settings that are always shown; others only if they differ from the default."""


def write_report(run_folder: Path) -> Path:
    """Write `report.html` to `run_folder`, with all images embedded, and return its path; beside it
    the film of the previews, `film.webp`.

    Raises:
        LimnerError: there is no such folder.
    """
    run_folder = Path(run_folder)
    if not run_folder.is_dir():
        raise LimnerError(f"{run_folder} is not a run folder.")
    run = shared(read_run(run_folder))
    film = film_of(run.previews)
    if film is not None:
        with replacing(run_folder / FILM, durable=False) as staging:
            staging.write_bytes(film)
    return write_from("run.html", run_folder / "report.html", values_of(run, film))


def values_of(run: Run, film: bytes | None = None) -> dict[str, Any]:
    """The context of the template run.html.

    Args:
        film: of the previews, an animated WebP.
    """
    results, last = run.results, run.train[-1] if run.train else None
    minutes = number(results.get("minutes")) or (number((last or {}).get("seconds")) or 0) / 60
    shots, wide = previews(run)
    about = text(part(results, "dataset"), "description")
    return {
        "title": title_of(run),
        "results": results,
        "parameters": number(results.get("parameters")),
        "last": last,
        "seconds": minutes * 60,
        "trained": trained(run),
        "about": about,
        "before": " ".join(before_in_words(run.lineage)) if run.lineage else "",
        "recall": counted(results, "recall"),
        "searched": text(results, "range").removesuffix(f": {about}"),
        "checker": counted(results, "checker"),
        "large": shares_first(results),
        "small": figures(run),
        "drawn": drawn(run),
        "previews": shots,
        "wide_previews": wide,
        "film": embed_film(film),
        "distilled": is_distilled(run),
        "losses": losses(run),
        "levels": losses_by_level(run),
        "events": [event | {"seconds": number(event.get("seconds"))} for event in run.events],
        "settings": settings(run),
        "tables": tables(run),
    }


def shared(run: Run) -> Run:
    """The run without private paths, since a page may be shared."""
    places = places_of(run.config)
    return replace(
        run,
        config=redacted_settings(run.config),
        events=redacted(run.events, places),
        results=redacted(run.results, places),
        refused=redacted(run.refused, places),
    )


def title_of(run: Run) -> str:
    name = part(run.config, "data").get("dataset_name") or run.folder.resolve().name
    return f"{name}: training run"


def is_distilled(run: Run) -> bool:
    return bool(part(run.config, "model").get("flow_map"))


def trained(run: Run) -> str:
    """Trained from scratch, or fine-tuned from which model."""
    training, lora = part(run.config, "training"), part(run.config, "lora")
    base = run.lineage.base if run.lineage else None
    begun = (base.model or base.name) if base else None
    if base is None and not run.lineage:
        begun = training.get("init_from")  # the last path component, or a Hub id
    if base is None and not begun:
        return "trained from scratch"
    if run.lineage and run.lineage.method == "distilled":
        return f"distilled from {begun or 'another model'}"
    how = f" with LoRA of rank {lora['rank']}" if lora.get("rank") else ""
    return f"fine-tuned{how} from {begun or 'another model'}"


def counted(results: dict[str, Any], key: str) -> dict[str, Any]:
    """Recall or checker results of the splits that have any."""
    share = "all_right" if key == "checker" else "at_1"
    found = {split: part(part(results, key), split) for split in part(results, key)}
    return {
        split: about
        for split, about in found.items()
        if number(about.get("count")) and number(about.get(share)) is not None
    }


def shares_first(results: dict[str, Any]) -> list[Card]:
    """Prompt following: recall@1, or the checker's result, of each split."""
    found = []
    for split, about in counted(results, "recall").items():
        name = f"recall@1, {adjective(split)} prompts"
        note = of_count(about["at_1"], about["count"])
        if (at_5 := number(about.get("at_5"))) is not None:
            note += f"; recall@5 {at_5:.0%}"
        found.append((name, f"{about['at_1']:.0%}", note))
    for split, about in counted(results, "checker").items():
        name = f"fully correct, {adjective(split)} prompts"
        shares = {name: number(share) for name, share in part(about, "by_part").items()}
        parts = [f"{name} {share:.0%}" for name, share in shares.items() if share is not None]
        note = "; ".join([of_count(about["all_right"], about["count"]), ", ".join(parts)])
        found.append((name, f"{about['all_right']:.0%}", note.removesuffix("; ")))
    return found


def figures(run: Run) -> list[Card]:
    """Noise, speed, size, and the held-out loss."""
    found = []
    noise, speed = part(run.results, "flat_region_std"), run.speed or part(run.results, "speed")
    drawn, real = number(noise.get("drawn")), number(noise.get("real"))
    if drawn is not None:
        note = "of 255" + (f"; {real:.1f} in the real images" if real is not None else "")
        if noise.get("visible"):
            note += ": the generated images still contain noise"
        found.append(("noise in flat areas", f"{drawn:.1f}", note))
    if rate := images_per_second(run):
        found.append(("images per second", f"{rate:.1f}", "in training"))
    if (mfu := number(speed.get("mfu"))) is not None:
        peak = number(speed.get("matmul_peak_gflops"))
        of = f"share of {peak:,.0f} GFLOP/s, the matmul peak measured here" if peak else ""
        found.append(("of peak speed (MFU)", f"{mfu:.0%}", of))
    if size := number(run.results.get("parameters")):
        found.append(("parameters", parameters_in_words(size), f"{size:,.0f}"))
    losses = [line for line in run.heldout if is_number(line.get("loss"))]
    if losses:
        at = f"at step {losses[-1]['step']:,}"
        found.append(("held-out loss", f"{losses[-1]['loss']:.3f}", at))
    return found


def of_count(share: float, count: int) -> str:
    """0.9, 60 -> 54 of 60 (95% CI 80% to 95%)"""
    low, high = wilson(min(max(share, 0), 1), count)
    return f"{round(share * count)} of {count} (95% CI {low:.0%} to {high:.0%})"


def drawn(run: Run) -> dict[str, Any]:
    """Samples of the trained model by split, with their sampling settings."""
    usual = SamplingConfig().model_dump(mode="json", exclude=TOLD)
    sampling = part(run.results, "sampling").items()
    how = [f"{key.replace('_', ' ')} {v}" for key, v in sampling if usual.get(key) != v]
    step, last = run.results.get("steps"), (run.train or [{}])[-1].get("step")
    older = isinstance(step, int) and isinstance(last, int) and step < last
    return {
        "pictures": drawn_images(run.folder, run.samples),
        "ranked": any(sample.get("rank") is not None for sample in run.samples),
        "how": ", ".join(how),
        "older": step if older else None,
    }


def previews(run: Run) -> tuple[list[tuple[int, EmbeddedImage, int | None]], bool]:
    """(step, image, images seen) of the previews, and whether one of them is wide."""
    shots = []
    for step, path in evenly(run.previews, MAX_PREVIEWS):
        if shot := embed_image(run.folder, path.relative_to(run.folder), PREVIEW_SIDE):
            seen = [line["images"] for line in run.train if line["step"] <= step]
            shots.append((step, shot, seen[-1] if seen else None))
    return shots, any(shot.width > 2.5 * shot.height for _, shot, _ in shots)


def settings(run: Run) -> dict[str, dict[str, Any]]:
    """Settings by section."""
    general = {k: v for k, v in run.config.items() if not isinstance(v, dict)}
    sections = {k: v for k, v in run.config.items() if isinstance(v, dict)}
    return ({"general": general} if general else {}) | sections


def tables(run: Run) -> dict[str, dict[str, Any]]:
    """Sizes, versions, and skipped rows, by heading."""
    sizes = {
        f"{bucket['width']} × {bucket['height']}": f"{bucket['trained']:,} training, "
        f"{bucket['held_out']:,} held-out images"
        for bucket in run.buckets
    }
    refused = {str(line.get("key", "?")): line.get("reason", "") for line in run.refused}
    found = {
        f"Image sizes: {len(sizes)}": sizes,
        "Versions": part(run.results, "versions"),
        f"Skipped rows: {len(run.refused)}": refused,
    }
    return {name: values for name, values in found.items() if values}


# ---- curves of a run -----------------------------------------------------------------------------


def losses(run: Run) -> dict[str, Markup] | None:
    """Loss over images seen."""
    if not run.train and not run.heldout:
        return None
    curves: dict[str, Points] = {
        "each step": evenly(smoothed(points(run.train, "loss")), MAX_POINTS),
        "held out": points(run.heldout, "loss"),
        "trained": points(run.heldout, "train_loss"),
    }
    return chart(curves, "Loss over images seen", "images seen")


def losses_by_level(run: Run) -> dict[str, Markup] | None:
    if is_distilled(run):
        return None  # it is measured by numbers of steps, and not by noise levels
    levels: dict[str, Points] = {}
    for line in run.heldout:
        by_level = part(line, "loss_by_level")
        for level in by_level:
            levels.setdefault(f"t = {level}", []).extend(points([line | by_level], level))
    return chart(levels, "Held-out loss by noise level", "images seen") if levels else None


def points(lines: list[dict[str, Any]], key: str) -> Points:
    """(pictures seen, value) of each line; NaN, which a chart leaves out, where it has none."""
    pairs = ((number(line.get("images")), number(line.get(key))) for line in lines)
    return [(x, math.nan if y is None else y) for x, y in pairs if x is not None]


def smoothed(curve: Points) -> Points:
    """A moving average over 1/30 of the curve on either side."""
    reach = len(curve) // 30
    known = [y if math.isfinite(y) else 0.0 for _, y in curve]
    sums = [0.0, *accumulate(known)]
    counts = [0, *accumulate(int(math.isfinite(y)) for _, y in curve)]
    means = []
    for i, (x, _) in enumerate(curve):
        begin, end = max(0, i - reach), min(len(curve), i + reach + 1)
        count = counts[end] - counts[begin]
        means.append((x, (sums[end] - sums[begin]) / count if count else math.nan))
    return means
