"""Are the estimates true? Three sizes: what `limner estimate` says, and what a run then shows.

    python benchmarks/estimates.py

Each run is of 20 steps, in a process of its own, with everything that training does. Results are
kept in benchmarks/results/estimates.json.
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
SIZES = {
    "256 x 6, 64 tokens, batch 32": [
        "model.hidden_size=256", "model.num_layers=6", "model.num_heads=4", "model.patch_size=8",
        "training.batch_size=32",
    ],
    "384 x 8, 256 tokens, batch 16": ["model.patch_size=4", "training.batch_size=16"],
    "768 x 12, 64 tokens, batch 16": [
        "model.hidden_size=768", "model.num_layers=12", "model.num_heads=12",
        "model.patch_size=8", "training.batch_size=16",
    ],
}  # fmt: skip


def run(overrides: list[str]) -> dict[str, Any]:
    """A real run: its peak memory, and the median of its steps."""
    from limner.config import load_config
    from limner.training.probe import peak_resident
    from limner.training.runlog import read_log
    from limner.training.trainer import Trainer

    with tempfile.TemporaryDirectory() as folder:
        config = load_config(None, [*overrides, f"training.output_dir='{folder}'"])
        Trainer(config).train()
        (speed,) = (e for e in read_log(Path(folder) / "log.jsonl") if e["kind"] == "speed")
    seconds = config.training.batch_size / speed["images_per_second"]
    return {"peak": peak_resident(), "seconds_per_step": seconds}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(run(sys.argv[1:])))
        return
    from limner.config import load_config
    from limner.training.estimate import estimate

    rows = {}
    for name, words in SIZES.items():
        overrides = [*COMMON, *words]
        found = estimate(load_config(None, overrides))
        command = [sys.executable, __file__, *overrides]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        real = json.loads(output.splitlines()[-1])
        step = found.batch_size / found.pictures_per_second
        rows[name] = {
            "parameters": found.parameters,
            "peak_estimated_mib": round(found.peak / 2**20),
            "peak_measured_mib": round(real["peak"] / 2**20),
            "peak_ratio": round(found.peak / real["peak"], 3),
            "step_estimated": round(step, 4),
            "step_measured": round(real["seconds_per_step"], 4),
            "step_ratio": round(step / real["seconds_per_step"], 3),
            "probe_seconds": round(found.probe_seconds, 1),
        }
        print(name, rows[name], flush=True)
    date = datetime.date.today().isoformat()
    RESULTS.write_text(json.dumps({"date": date, "sizes": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
