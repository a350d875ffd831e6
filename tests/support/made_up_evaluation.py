"""An evaluation as `limner evaluate` leaves it, with made-up numbers and pictures."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from limner.metrics.interval import Measured, share

HOSTILE = '<script>alert("1")</script> & "quotes" <img src=x onerror=alert(1)>'
BIDI = "apple \u202egnp.elppa\u202c \u2066 left open"
LONG = "a" * 200


def blob(path: Path, seed: int, side: int = 64) -> None:
    """A coloured disc on white, so that a page of them looks like a page."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side - 0.5
    inside = (x / random.uniform(0.25, 0.45)) ** 2 + (y / random.uniform(0.25, 0.45)) ** 2 < 1
    pixels = np.full((side, side, 3), 255, np.uint8)
    slope = np.clip(1 - 0.5 * (x + y)[..., None], 0, 1)
    pixels[inside] = (random.integers(60, 256, 3) * slope).clip(0, 255).astype(np.uint8)[inside]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def made_up_evaluation(folder: Path, checker: bool = False) -> dict[str, Any]:
    """Writes evaluation.json and its pictures into `folder`; returns what the former holds."""
    network = {"name": "EfficientNet-Lite0", "sha256": "5ac1e5" * 10, "features": 1280}
    reference = {"name": "3,694 pictures of emoji", "preparation": "64 x 64 pixels, drawn so"}

    def metric(name: str, value: float, by: float | None, floor: float | None, **more: Any) -> Any:
        return {
            "name": name,
            "value": value,
            "interval": None if by is None else [value - by, value + by],
            "interval_by": "none: the metric allows none" if by is None else "bootstrap, seed 0",
            "std": None,
            "better": "lower",
            "notes": [],
            "counts": [259, 3694],
            "floor": None
            if floor is None
            else {
                "value": floor,
                "values": [floor * f for f in (0.7, 1.05, 1.25)],
                "counts": [259, 259],
                "notes": [],
            },
            "network": network,
            "reference": reference,
        } | more

    images, worst = [], []
    prompts = {
        "held out": [HOSTILE, "thumbs up: dark skin tone", BIDI, "红苹果", LONG, "waving hand"],
        "trained": ["red apple", "green apple", "grapes", "melon"],
        "free": ["a blue strawberry", "three cherries on a plate", ""],
    }
    number = 0
    for split, words in prompts.items():
        for prompt in words:
            file = f"pictures/{number:04d}.png"
            blob(folder / file, number)
            truth = None if split == "free" else f"pictures/{number:04d}-truth.png"
            if truth:
                blob(folder / truth, number + (number % 3 == 0))
            rank = None if split == "free" or checker else 1 + number % 3
            right = None if split == "free" or not checker else number % 3 > 0
            images.append(
                {"file": file, "prompt": prompt, "seed": number, "split": split}
                | {"truth": truth, "rank": rank, "right": right}
            )
            number += 1
    for k in range(4):
        near = f"pictures/near-{k:04d}.png"
        blob(folder / near, k + (k > 1))
        worst.append(
            {"prompt": images[k]["prompt"], "seed": k, "drawn": images[k]["file"]}
            | {"trained": near, "caption": (HOSTILE, "thumbs up", BIDI, LONG)[k]}
            | {"distance": 0.05 + 0.03 * k, "usual": 0.167, "ratio": (0.05 + 0.03 * k) / 0.167}
            | ({"own": 0.1, "own_ratio": 0.8} if k == 1 else {})
        )
    counted = {
        "held_out": {"count": 259, "at_1": asdict(share(201, 259)), "at_5": asdict(share(244, 259))}
        | {"range": "all 3953 pictures: Twemoji with names in en, zh"},
        "trained": {"count": 400, "at_1": asdict(share(391, 400)), "at_5": asdict(share(399, 400))}
        | {"range": "all 3953 pictures: Twemoji with names in en, zh"},
    }
    read = {
        split: {"count": 200, "all_right": asdict(share(right, 200))}
        | {"by_part": {"colour": 0.98, "shape": 0.99, "place": 0.93}}
        for split, right in (("held_out", 181), ("trained", 190))
    }
    levels = ("100", "300", "500", "700", "900")
    told = {
        "format": 1,
        "created": "2026-11-25T01:00:00Z",
        "command": "limner evaluate outputs/emoji --count 259 --reference held-out --seed 0",
        "checkpoint": {
            "path": "outputs/emoji/checkpoint-3750",
            "step": 3750,
            "images": 120000,
            "weights": "averaged",
            "parameters": 7612416,
            "weights_sha256": "0123456789abcdef" * 4,
        },
        "dataset": {
            "name": "shapes" if checker else "emoji",
            "description": "3953 Twemoji pictures (subset all) with names in en, zh.",
            "trained": 3694,
            "held_out": 259,
        },
        "protocol": {
            "method": 1,
            "drawn.prompts": "259 held-out captions, the first of each picture",
            "drawn.seeds": "0 to 258, one for each prompt",
            "drawn.resolution": "64 x 64",
            "drawn.dtype": "float32",
            "sampling.scheduler_type": "dpmsolver++",
            "sampling.num_inference_steps": 16,
            "sampling.guidance_scale": 3.0,
            "sampling.guidance_interval": [0.1, 0.9],
            "reference.pictures": 3694,
            "reference.contents": "99a8ec5cb5699cd711266b00b5c23b14" * 2,
        },
        "versions": {"limner": "0.1.0", "python": "3.12.4", "torch": "2.13.0"},
        "device": "CPU, 2 cores",
        "held_out_loss": {
            "held_out": {t: 0.5 / (k + 1) for k, t in enumerate(levels)},
            "trained": {t: 0.45 / (k + 1) for k, t in enumerate(levels)},
            "count": 256,
            "gap": 0.0183,
            "gap_interval": [0.0101, 0.0264],
        },
        "recall": None if checker else counted,
        "checker": read if checker else None,
        "metrics": [
            metric("kernel distance (EfficientNet-Lite0)", 0.0213, 0.0031, 0.0012),
            metric("Fréchet distance (EfficientNet-Lite0)", 61.4, None, 22.9)
            | {"notes": ["biased at 259 pictures: compare it only at the same count"]},
            metric("precision (EfficientNet-Lite0)", 0.81, 0.04, 0.93, better="higher"),
            metric("CLIP score", 24.61, 0.42, None, better="higher"),
        ],
        "memorisation": {
            "split": "held out",
            "count": 259,
            "ratio": asdict(Measured(1.042, (0.93, 1.15), "bootstrap, seed 0")),
            "verdict": "No sign of memorisation: generated images are 1.04 times as far from the"
            " nearest training image as held-out images.",
            "space": "root mean square difference over 16 x 16 places",
            "worst": worst,
        },
        "pictures": images,
        "refused": [{"key": f"{HOSTILE}.jpg", "reason": "truncated file"}],
        "events": [
            "2 of 259 prompts were cut at 64 tokens.",
            f"The reference holds a caption that says {HOSTILE}",
        ],
    }
    (folder / "evaluation.json").write_text(json.dumps(told), encoding="utf-8")
    return told
