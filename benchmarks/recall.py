"""Recall of the demo's emoji after a given number of steps, for any setting.

    python benchmarks/recall.py --steps 500 scheduler.logit_mean=0.0
    python benchmarks/recall.py --steps 500 training.learning_rate=5e-4 data.languages=[en]

Trains the demo's model with the overrides, generates every prompt, and prints and appends one line
to benchmarks/results/recall.jsonl: recall of trained and of held-out prompts (see
src/limner/metrics/retrieval.py), speed, machine, date, and versions.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
from pathlib import Path

import torch

from limner.apps.demo import demo_config
from limner.config import load_config
from limner.evaluation.end_of_run import evaluate_run
from limner.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results" / "recall.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--threads", type=int, help="of the processor (default: all cores)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        base = demo_config(10.0, folder, torch.device("cpu")).model_dump(mode="json")
        base["training"] |= {"max_minutes": None, "max_steps": options.steps, "trackers": ["none"]}
        base["training"] |= {"heldout_steps": 10**6, "preview_steps": 10**6}
        trainer = Trainer(load_config(base, options.overrides))
        trainer.train()
        results = evaluate_run(Path(folder), trainer.config, trainer.data)
    line = {
        "date": datetime.date.today().isoformat(),
        "steps": options.steps,
        "overrides": options.overrides,
        "logit_mean": trainer.config.scheduler.logit_mean,
        **results["recall"],
        **{key: results[key] for key in ("parameters", "minutes", "speed", "device", "versions")},
    }
    print(json.dumps({k: line[k] for k in ("overrides", "trained", "held out", "minutes")}))
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
