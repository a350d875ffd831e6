"""What the pages of a run and of an evaluation are made of: one file each, nothing from outside."""

from __future__ import annotations

import base64
import io
import json
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from limner.evaluation.splits import Split
from limner.metrics.interval import wilson
from limner.reports.line_chart import NARROW, Points, format_tick, line_chart

MAX_AS_IS = 64_000  # bytes; larger pictures are shrunk, so that the page can be sent by mail
SAMPLE_SIDE = 256  # pixels, longest side after shrinking


def page(title: str, body: str) -> str:
    style = files("limner.reports").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, body: str, note: str = "") -> str:
    """A part of the page, or "" if there is nothing in it. `body` and `note` are HTML."""
    if not body:
        return ""
    note = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{escape(heading)}</h2>{note}{body}</section>"


def chart(
    series: dict[str, Points], title: str, x_label: str, y_label: str, note: str, log_y: bool = True
) -> str:
    """A line chart twice, of which the style shows the one whose text is legible at the width."""
    wide, narrow = (
        line_chart(series, title, x_label, y_label, log_y, width) for width in (None, NARROW)
    )
    return (
        f'<figure><div class="at-wide">{wide}</div><div class="at-narrow">{narrow}</div>'
        f"<figcaption>{escape(note)}</figcaption></figure>"
    )


def folded(parts: list[tuple[str, str]]) -> str:
    """What few readers want, by its heading: a click away. The second of each is HTML."""
    return "".join(
        f"<details><summary>{escape(name)}</summary>{body}</details>"
        for name, body in parts
        if body
    )


def command_block(command: str) -> str:
    return f'<pre tabindex="0"><code>{escape(command)}</code></pre>'


def table(caption: str, values: dict[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{breakable(str(key))}</th><td>{escape(in_words(value))}</td></tr>'
        for key, value in values.items()
    )
    head = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{head}<tbody>{rows}</tbody></table>"


def drawn_pictures(folder: Path, samples: list[dict[str, Any]]) -> str:
    """What a model drew, split by split, beside the real pictures; "" if nothing."""
    parts = []
    for split in Split:
        mine = [sample for sample in samples if sample.get("split") == split]
        if not mine:
            continue
        single = "" if any(sample.get("truth") for sample in mine) else " single"
        shown = "".join(sample_figure(folder, sample) for sample in mine)
        parts.append(
            f"<h3>{split.heading} <small>· {len(mine)}; {split.meaning}</small></h3>"
            f'<div class="pictures{single}">{shown}</div>'
        )
    return "".join(parts)


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


def rank_explained(samples: list[dict[str, Any]]) -> str:
    if all(sample.get("rank") is None for sample in samples):
        return ""
    return (
        "“✓ nearest”: of all pictures in the range the true one is nearest to the drawn one; "
        "“rank 3”: two others are nearer."
    )


def breakable(key: str) -> str:
    """num_inference_steps, which may go on in the next line after each underscore."""
    return escape(key).replace("_", "_<wbr>")


def picture(
    folder: Path, name: str | Path | None, alt: str, longest_side: int, css_class: str = ""
) -> str:
    """An `<img>` that carries its bytes, or "" if there is no such picture in the folder."""
    if not isinstance(name, str | Path) or not name:
        return ""
    path = folder / name
    if Path(name).anchor or ".." in Path(name).parts:
        return ""  # a page that is sent to others shows nothing from elsewhere
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


def evenly(items: list[Any], most: int) -> list[Any]:
    """At most `most` of `items`, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]
