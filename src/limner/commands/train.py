"""`limner train`: a configuration to a trained model and its report."""

from __future__ import annotations

import argparse
import contextlib
import logging
from pathlib import Path

from limner.commands.common import Commands, Parent
from limner.console import say

log = logging.getLogger(__name__)


def add(commands: Commands, common: Parent) -> None:
    train = commands.add_parser(
        "train",
        parents=[common],
        help="train a model",
        usage="limner train [--config FILE] [--resume CHECKPOINT] [section.key=value ...]",
        epilog="Set any configuration key with training.batch_size=16 or --training.batch_size "
        "16. On Ctrl-C, SIGTERM, or a closed terminal, the run finishes the current step, "
        "saves a checkpoint, and exits with code 75; the same command resumes it. A second "
        "signal stops it immediately.",
    )
    train.add_argument(
        "--config", type=Path, help="YAML file (default: all keys have their defaults)"
    )
    train.add_argument(
        "--resume",
        metavar="CHECKPOINT",
        help="checkpoint folder, `latest` (in output_dir), or `no`; by default, a run with the "
        "same settings is resumed",
    )
    train.set_defaults(run=run, takes_overrides=True)


def run(options: argparse.Namespace) -> None:
    from limner.checkpoint.inherit import load_run_config
    from limner.evaluation.end_of_run import drawing_time, evaluate_run
    from limner.evaluation.summary import sentences_of_run
    from limner.reports.run_report import write_report
    from limner.training.folder import run_lock
    from limner.training.resume import resume_config
    from limner.training.trainer import Trainer

    config = resume_config(options.resume, options.config, options.overrides) or load_run_config(
        options.config, options.overrides
    )
    trainer = Trainer(config, resume=options.resume)
    log.info(f"data: {trainer.data.set.description}")  # how it was understood
    main = trainer.run.accelerator.is_main_process
    with run_lock(trainer.folder) if main else contextlib.nullcontext():
        trainer.train()
        trainer.run.accelerator.end_training()
        if not main:
            return
        seconds = drawing_time(trainer.state.seconds)
        results = evaluate_run(trainer.folder, config, trainer.data, seconds=seconds)
        page = write_report(trainer.folder)
        for sentence in sentences_of_run(results):
            say(sentence)
        say(f"see {page}")
