"""`limner report`: what a run learned, drawn, measured, and written down."""

from __future__ import annotations

import argparse
from pathlib import Path

from limner.commands.common import Commands, Parent
from limner.console import say
from limner.errors import LimnerError

SECONDS = 120.0
"""For drawing, unless every caption is asked for."""


def add(commands: Commands, common: Parent) -> None:
    report = commands.add_parser(
        "report",
        parents=[common],
        help="generate samples, measure recall, and write report.html for a run",
    )
    report.add_argument("run_folder", type=Path)
    report.add_argument(
        "--all",
        action="store_true",
        help="measure every caption; without it as many as are drawn in about two minutes, and at "
        "most 400 of each split, evenly spread",
    )
    report.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from limner.config import load_config
    from limner.data.open import open_data, squares
    from limner.evaluation.end_of_run import evaluate_run
    from limner.evaluation.summary import how_to_measure_all, learned_by_heart, sentences_of_run
    from limner.files.output_folders import is_training_run
    from limner.reports.run_folder import read_run
    from limner.reports.run_report import write_report

    if not is_training_run(options.run_folder):
        raise LimnerError(
            f"{options.run_folder} is not a Limner run; use a folder written by limner train "
            "(training.output_dir)"
        )
    config = load_config(options.run_folder / "config.yaml")
    earlier = read_run(options.run_folder)
    free = [
        sample["prompt"]
        for sample in earlier.samples
        if sample.get("split") == "free" and isinstance(sample.get("prompt"), str)
    ]
    results = evaluate_run(
        options.run_folder,
        config,
        open_data(squares(config)),
        free,
        **({"most": None} if options.all else {"seconds": SECONDS}),
        command=earlier.results.get("command"),
    )
    page = write_report(options.run_folder)
    for sentence in [*sentences_of_run(results), *how_to_measure_all(results, options.run_folder)]:
        say(sentence)
    for sentence in learned_by_heart(results):
        say(sentence)
    say(page)
