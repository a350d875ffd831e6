"""Aspect ratio buckets: an object near the edge of wide and tall pictures, where a square crop
would cut it off.

    python benchmarks/mixed_sizes.py outputs/mixed --minutes 3

It makes the pictures and captions ("a red circle at the left"), trains with `data.buckets: auto`,
generates every caption in its aspect ratio, and checks that position and colour are as the caption
says. `drawn.png` shows some of them.
"""

from __future__ import annotations

import argparse
import random
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from limner import ImageGenerator, Trainer, load_config
from limner.data.builtin.shapes import COLOURS, SHAPES, draw_shape
from limner.inference.contact_sheet import contact_sheet

CANVASES = {  # (height, width), and where a thing can be, as shares of width and height
    (32, 48): {"left": (0.15, 0.5), "right": (0.85, 0.5)},
    (48, 32): {"top": (0.5, 0.15), "bottom": (0.5, 0.85)},
    (40, 40): {"center": (0.5, 0.5)},
}
THING, EACH = 12, 4  # pixels; pictures of one caption


def captions() -> dict[str, tuple[tuple[int, int], tuple[float, float], str, str]]:
    """Each caption with its canvas, place, colour, and shape."""
    return {
        f"a {colour} {shape} at the {word}": (canvas, place, colour, shape)
        for canvas, places in CANVASES.items()
        for word, place in places.items()
        for colour, shape in product(COLOURS, SHAPES)
    }


def make(folder: Path) -> None:
    folder.mkdir(parents=True)
    random.seed(0)
    for number, (caption, (canvas, place, colour, shape)) in enumerate(captions().items()):
        for again in range(EACH):
            height, width = canvas
            paper = Image.new("RGB", (8 * width, 8 * height), "white")
            x = 8 * (place[0] * width + random.uniform(-1, 1))
            y = 8 * (place[1] * height + random.uniform(-1, 1))
            half = 4 * THING
            draw_shape(paper, shape, [x - half, y - half, x + half, y + half], COLOURS[colour])
            paper.reduce(8).save(folder / f"{number:03}-{again}.png")
            (folder / f"{number:03}-{again}.txt").write_text(caption, encoding="utf-8")


def as_asked(image: Image.Image, place: tuple[float, float], colour: str) -> tuple[bool, bool]:
    """Whether what is not white is centred within 4 pixels of its place, and of its colour."""
    pixels = np.asarray(image).astype(float)
    there = np.abs(pixels - 255).max(axis=2) > 100
    if there.sum() < 20:
        return False, False
    rows, columns = there.nonzero()
    x, y = place[0] * image.width, place[1] * image.height
    near = abs(columns.mean() + 0.5 - x) < 4 and abs(rows.mean() + 0.5 - y) < 4
    mean = np.median(pixels[there], axis=0)
    nearest = min(COLOURS, key=lambda name: float(np.abs(mean - COLOURS[name]).sum()))
    return bool(near), nearest == colour


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--steps", type=int, help="instead of minutes")
    parser.add_argument("--squares", action="store_true", help="crop to squares, to compare")
    options = parser.parse_args()
    make(options.folder / "pictures")
    length = {"max_steps": options.steps} if options.steps else {"max_minutes": options.minutes}
    run = options.folder / "run"
    config = load_config(
        {
            "data": {
                "dataset_path": str(options.folder / "pictures"),
                "image_size": 40,
                "buckets": None if options.squares else "auto",
            },
            "model": {"patch_size": 4, "hidden_size": 128, "num_layers": 4, "num_heads": 4},
            "text_encoder": {"max_length": 24},
            "training": {
                "output_dir": str(run),
                "batch_size": 16,
                "num_workers": 0,
                "compile_model": False,
                "preview_steps": 10**6,
                "save_steps": 10**6,
                **length,
            },
            "sampling": {"num_inference_steps": 12, "guidance_scale": 2.0},
            "cache": {"folder": str(options.folder / "cache")},
        }
    )
    Trainer(config).train()
    generator = ImageGenerator(run)
    found: dict[tuple[int, int], list[tuple[bool, bool]]] = {}
    shown: list[tuple[str, Image.Image]] = []
    for number, (caption, (canvas, place, colour, _)) in enumerate(captions().items()):
        height, width = canvas
        drawn = generator.generate(caption, seed=number, height=height, width=width)
        found.setdefault(canvas, []).append(as_asked(drawn, place, colour))
        if number % 5 == 0:
            shown.append((caption, drawn))
    for (height, width), each in found.items():
        places, colours = (sum(part) / len(each) for part in zip(*each, strict=True))
        print(f"{width} x {height}: {places:.0%} in place, {colours:.0%} of the colour")
    contact_sheet([p for _, p in shown], [c for c, _ in shown]).save(options.folder / "drawn.png")
    print(options.folder / "drawn.png")


if __name__ == "__main__":
    main()
