"""A page that `limner export --format web` wrote, in a real browser."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from browser import Page
from PIL import Image


def opened(
    page: Page, file: Path, width: int = 1280, dark: bool = False, language: str = "en"
) -> None:
    """The page from the disk, with its model open, in a language (which it remembers)."""
    page.open(file, width, dark)
    page.ask("ready")
    if page.ask("language") != language:
        page.ask("$('language').click()")
    assert page.ask("$('error').hidden || $('error').textContent") is True


def drawn(page: Page, prompts: Sequence[str], seed: int, **fields: object) -> list[Image.Image]:
    """The pictures of prompts, with seeds that count up for each: as somebody types and saves.

    Args:
        fields: values of other fields, by their ids.
    """
    values = {"prompt": "\n".join(prompts), "seed": seed, "count": 1, **fields}
    for name, value in values.items():
        page.ask(f"$({json.dumps(name)}).value = {json.dumps(value)}")
    page.ask("$('fresh').checked = false; $('pictures').replaceChildren()")
    page.ask("draw()")
    assert page.ask("$('error').hidden || $('error').textContent") is True
    sources = page.ask("[...document.querySelectorAll('.actions a')].map(a => a.href)")
    return [
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources
    ]


def apart(here: Sequence[Image.Image], there: Sequence[Image.Image]) -> tuple[int, float]:
    """Of pictures and those that they should be: the largest difference, in 255ths, and the lowest
    PSNR, in dB."""
    assert len(here) == len(there)
    largest, lowest = 0, np.inf
    for one, other in zip(here, there, strict=True):
        assert one.size == other.size
        difference = np.subtract(
            *(np.asarray(i.convert("RGB")).astype(float) for i in (one, other))
        )
        largest = max(largest, int(np.abs(difference).max()))
        error = max(float(np.square(difference).mean()), 1e-9)
        lowest = min(lowest, 10 * np.log10(255**2 / error))
    return largest, lowest
