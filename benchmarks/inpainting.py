"""How well the hidden half of a picture is drawn.

    limner demo
    python benchmarks/inpainting.py outputs/demo

The right half of each held-out picture is hidden and drawn anew by its caption. Measured are the
seam (mean difference of the two columns of pixels that meet there, against that of the real
pictures), whether everything else stayed to the bit, and how often the nearest of all pictures'
right halves (root mean square over 8 x 16 averaged pixels) is the true one. Once as `--mask` does
it, once with the whole picture drawn from words alone and its right half put beside the real left
one. Results: benchmarks/results/inpainting.json, and a sheet of the pictures.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from limner.data.open import open_data
from limner.evaluation.samples import images_of
from limner.evaluation.splits import OF_DATA, Split
from limner.inference.contact_sheet import contact_sheet
from limner.inference.generator import ImageGenerator
from limner.metrics import retrieval

RESULTS = Path(__file__).parent / "results" / "inpainting.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--most", type=int, default=100, help="held-out pictures")
    parser.add_argument("--steps", type=int, help="num_inference_steps; default: the model's")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()

    generator = ImageGenerator(options.checkpoint)
    data = open_data(generator.config)
    steps = options.steps or generator.sampling.num_inference_steps
    halves, places = right_halves(data)
    held_out = images_of(data, Split.HELD_OUT)
    positions = range(min(options.most, len(held_out.rows)))
    real = np.stack([held_out.load(i).numpy() for i in positions])
    captions = [held_out.rows[i].captions[0] for i in positions]
    truth = [places[Split.HELD_OUT, i] for i in positions]
    side = real.shape[2]
    mask = np.zeros((side, side), dtype=np.uint8)
    mask[:, side // 2 :] = 255

    def draw(**how: Any) -> list[Image.Image]:
        return [
            generator.generate(
                caption, steps, seed=i, **{k: v(i) if callable(v) else v for k, v in how.items()}
            )
            for i, caption in enumerate(captions)
        ]

    masked = draw(init_image=lambda i: Image.fromarray(real[i]), mask=Image.fromarray(mask))
    beside = [
        Image.composite(drawn, Image.fromarray(picture), Image.fromarray(mask))
        for drawn, picture in zip(draw(), real, strict=True)
    ]
    found: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "checkpoint": str(options.checkpoint),
        "pictures": len(real),
        "among": len(halves),
        "num_inference_steps": steps,
        "seam_of_real": seam(real),
        "nearest_of_real": nearest(real, truth, halves),
    }
    for name, images in (("masked", masked), ("from_words_alone", beside)):
        drawn = np.stack([np.asarray(image) for image in images])
        found[name] = {
            "seam": seam(drawn),
            "seam_over_real": seam(drawn) / seam(real),
            "kept_to_the_bit": bool((drawn[:, :, : side // 2] == real[:, :, : side // 2]).all()),
            "nearest": nearest(drawn, truth, halves),
        }
        print(name, json.dumps(found[name]))
    print("real", found["seam_of_real"])
    options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    rows = [
        image
        for picture, one, other in zip(real, masked, beside, strict=True)
        for image in (Image.fromarray(picture), one, other)
    ]
    labels = [label for caption in captions for label in (caption, "masked", "from words alone")]
    sheet = contact_sheet(rows, labels, columns=12)
    sheet.save(options.output.with_suffix(".png"))


def right_halves(data: Any) -> tuple[torch.Tensor, dict[tuple[Split, int], int]]:
    """Features of the right half of every picture, and their places by split and row."""
    found: list[torch.Tensor] = []
    places: dict[tuple[Split, int], int] = {}
    for split in OF_DATA:
        images = images_of(data, split)
        for i in range(len(images.rows)):
            places[split, i] = len(found)
            found.append(half(images.load(i)[None]))
    return torch.cat(found), places


def half(images: torch.Tensor) -> torch.Tensor:
    """uint8 [N, S, S, 3] -> [N, d]: right halves, averaged to 16 x 8 pixels."""
    features = retrieval.features(images).view(len(images), 3, retrieval.SIDE, retrieval.SIDE)
    return features[..., retrieval.SIDE // 2 :].flatten(1)


def nearest(images: np.ndarray, truth: list[int], halves: torch.Tensor) -> float:
    ranks = retrieval.ranks_by(half(torch.from_numpy(images)), truth, halves)
    return sum(rank == 1 for rank in ranks) / len(ranks)


def seam(images: np.ndarray) -> float:
    """Mean difference between the columns that meet at the seam, of 255."""
    middle = images.shape[2] // 2
    left, right = images[:, :, middle - 1].astype(float), images[:, :, middle].astype(float)
    return float(np.abs(left - right).mean())


if __name__ == "__main__":
    main()
