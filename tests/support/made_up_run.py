"""A run folder with made-up figures and pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from limner.config import SamplingConfig

HOSTILE = '<script>alert("1")</script> & "quotes" <img src=x onerror=alert(1)>'


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def noise(path: Path, side: int = 32, width: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (side, width or side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def made_up_run(folder: Path, strips: bool = False) -> Path:
    """A finished run as the trainer and the demo leave it; with strips its previews are wide."""
    samples = []
    for k, split in enumerate(("trained", "held out", "free")):
        noise(folder / f"samples/{k:03d}.png")
        truth = None if split == "free" else f"samples/{k:03d}-truth.png"
        if truth:
            noise(folder / truth)
        prompt = (HOSTILE, "thumbs up: dark skin tone", "红苹果")[k]
        samples.append(
            {"prompt": prompt, "seed": k, "file": f"samples/{k:03d}.png", "split": split}
            | {"truth": truth, "rank": (1, 3, None)[k]}
        )
    write_json(folder / "samples.json", samples)
    for step in range(0, 1001, 50):
        noise(folder / f"previews/step-{step:06d}.png", 8, 64 if strips else 8)
    lines: list[dict[str, Any]] = [
        {"kind": "event", "step": 0, "seconds": 1.0, "message": f"torch.compile is off {HOSTILE}"}
    ]
    for step in range(10, 1001, 10):
        lines.append({"kind": "train", "step": step, "images": 32 * step, "loss": 1 / step})
        lines[-1] |= {"seconds": step / 2, "images_per_second": 64.0}
        if step % 100 == 0:
            lines.append({"kind": "heldout", "step": step, "images": 32 * step, "loss": 2 / step})
            lines[-1] |= {"seconds": step / 2}
            lines[-1] |= {"train_loss": 1 / step, "loss_by_level": {"100": 0.9, "900": 0.2}}
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / "log.jsonl").write_text(text + '\n{"kind": "tra', encoding="utf-8")
    config = {"data": {"dataset_name": "emoji <b>"}, "training": {"batch_size": 32, "seed": 7}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    write_json(folder / "refused.jsonl", {"key": "broken.jpg", "reason": "truncated file"})
    results = {
        "range": "all 306 pictures of hands",
        "distance": "mean squared difference at 32 pixels",
        "recall": {
            "trained": {"count": 60, "at_1": 0.9, "at_5": 0.95},
            "held out": {"count": 36, "at_1": 25 / 36, "at_5": 0.75},
        },
        "speed": {"images_per_second": 63.14, "mfu": 0.381, "matmul_peak_gflops": 212.4},
        "device": "CPU, 2 cores",
        "parameters": 7612416,
        "minutes": 8.1,
        "versions": {"torch": "2.13.0"},
        "sampling": {
            **SamplingConfig(num_inference_steps=16, shift=2.0).model_dump(mode="json"),
            "dtype": "float32",
        },
        "command": "limner demo --minutes 10",
    }
    write_json(folder / "results.json", results)
    return folder
