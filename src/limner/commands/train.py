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
        help="train a model from a configuration",
        usage="limner train [--config FILE] [--resume CHECKPOINT] [section.key=value ...]",
        epilog="Any key of the configuration can be set here: training.batch_size=16, or "
        "--training.batch_size 16. Ctrl-C, SIGTERM, or a terminal that is closed: the step is "
        "finished, all is saved, exit code 75; the same command goes on. A second signal ends at "
        "once.",
    )
    train.add_argument("--config", type=Path, help="YAML file (default: every key's default)")
    train.add_argument(
        "--resume",
        metavar="CHECKPOINT",
        help="a checkpoint folder, `latest` in the output_dir, "
        "or `no`; by default a run of the same settings goes on by itself",
    )
    train.set_defaults(run=run, takes_overrides=True)


def run(options: argparse.Namespace) -> None:
    from limner.checkpoint.inherit import load_run_config
    from limner.evaluation.exam import drawing_time, examine, sentences
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
        results = examine(trainer.folder, config, trainer.data, seconds=seconds, say=say)
        page = write_report(trainer.folder)
        for sentence in sentences(results):
            say(sentence)
        say(f"see {page}")
