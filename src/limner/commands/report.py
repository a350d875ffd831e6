"""`limner report`: what a run learned, drawn, measured, and written down."""

from __future__ import annotations

import argparse
from pathlib import Path

from limner.commands.common import Commands, Parent
from limner.console import say
from limner.errors import LimnerError


def add(commands: Commands, common: Parent) -> None:
    report = commands.add_parser(
        "report",
        parents=[common],
        help="generate samples, measure recall, and write report.html for a run",
    )
    report.add_argument("run_folder", type=Path)
    report.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from limner.config import load_config
    from limner.data.open import open_data, squares
    from limner.evaluation.end_of_run import evaluate_run
    from limner.evaluation.summary import sentences_of_run
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
        command=earlier.results.get("command"),
    )
    page = write_report(options.run_folder)
    for sentence in sentences_of_run(results):
        say(sentence)
    say(page)
