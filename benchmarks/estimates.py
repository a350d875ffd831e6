"""The accuracy of `limner estimate`, quick and full: predictions against measured runs.

    python benchmarks/estimates.py

Each run trains for 20 steps in its own process, with everything that `limner train` does. The
width, depth, and number of tokens of the first size are then doubled and its pictures halved, one
at a time, and the cost is compared with the prediction. Results: benchmarks/results/estimates.json.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "estimates.json"
COMMON = [
    "data.dataset_name=emoji",
    "data.subset=demo",
    "data.image_size=64",
    "text_encoder.max_length=16",
    "training.max_steps=20",
    "training.num_workers=0",
    "training.logging_steps=20",
    "training.heldout_pictures=32",
    "training.trackers=[none]",
    "sampling.num_inference_steps=4",
]
SMALL = {"model.hidden_size": 256, "model.num_layers": 6, "model.num_heads": 4}
SMALL |= {"model.patch_size": 8, "training.batch_size": 32}
LARGE = {"model.hidden_size": 768, "model.num_layers": 12, "model.num_heads": 12}
SIZES: dict[str, dict[str, int]] = {
    "256 x 6, 64 tokens, batch 32": SMALL,
    "twice the width": SMALL | {"model.hidden_size": 512, "model.num_heads": 8},
    "twice the depth": SMALL | {"model.num_layers": 12},
    "121 tokens (1.89 times)": SMALL | {"data.image_size": 88},
    "half the pictures": SMALL | {"data.num_samples": 168},
    "384 x 8, 256 tokens, batch 16": {"model.patch_size": 4, "training.batch_size": 16},
    "768 x 12, 64 tokens, batch 16": LARGE | {"model.patch_size": 8, "training.batch_size": 16},
}


def run(overrides: list[str]) -> dict[str, Any]:
    """A real run: its peak memory, and the median of its steps."""
    from limner.config import load_config
    from limner.training.monitor.run_log import read_log
    from limner.training.probe import peak_resident
    from limner.training.trainer import Trainer

    with tempfile.TemporaryDirectory() as folder:
        config = load_config(None, [*overrides, f"training.output_dir='{folder}'"])
        trainer = Trainer(config)
        trainer.train()
        (speed,) = (e for e in read_log(Path(folder) / "log.jsonl") if e["kind"] == "speed")
    seconds = config.training.micro_batch_size / speed["images_per_second"]
    images = len(trainer.data.trained.rows)
    return {"peak": peak_resident(), "seconds_per_step": seconds, "pictures": images}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(run(sys.argv[1:])))
        return
    from limner.apps.estimate import estimate
    from limner.config import load_config

    rows: dict[str, dict[str, Any]] = {}
    for name, words in SIZES.items():
        overrides = [*COMMON, *(f"{key}={value}" for key, value in words.items())]
        config = load_config(None, overrides)
        quick, found = estimate(config), estimate(config, full=True)
        command = [sys.executable, __file__, *overrides]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        real = json.loads(output.splitlines()[-1])
        step = found.batch_size / found.pictures_per_second
        first = next(iter(rows.values()), None)
        rows[name] = {
            "parameters": found.parameters,
            "gflops_per_picture": round(found.gflops_per_picture, 3),
            "pictures": real["pictures"],
            "peak_estimated_mib": round(found.peak / 2**20),
            "peak_measured_mib": round(real["peak"] / 2**20),
            "peak_ratio": round(found.peak / real["peak"], 3),
            "step_estimated": round(step, 4),
            "step_measured": round(real["seconds_per_step"], 4),
            "step_ratio": round(step / real["seconds_per_step"], 3),
            "probe_seconds": round(found.probe_seconds, 1),
            "quick_peak_ratio": round(quick.peak / real["peak"], 3),
            "quick_step_ratio": round(
                quick.batch_size / quick.pictures_per_second / real["seconds_per_step"], 3
            ),
            "quick_seconds": round(quick.probe_seconds, 1),
        }
        if first:
            for key in (
                "gflops_per_picture",
                "step_estimated",
                "step_measured",
                "peak_measured_mib",
            ):
                rows[name][f"{key}_to_first"] = round(rows[name][key] / first[key], 2)
        print(name, rows[name], flush=True)
    date = datetime.date.today().isoformat()
    RESULTS.write_text(json.dumps({"date": date, "sizes": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
