"""`limner train`: a configuration to a trained model and its report."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from limner.commands.common import (
    A_CONFIGURATION,
    A_MODEL,
    Commands,
    Parent,
    flag,
    is_yaml,
    positive,
)
from limner.commands.neighbours import FOLDER_FLAGS, KEYS
from limner.console import say
from limner.errors import LimnerError
from limner.messages import plain_words

if TYPE_CHECKING:
    from limner.config import Config
    from limner.data.open import Data

log = logging.getLogger(__name__)


def add(commands: Commands, common: Parent) -> None:
    train = commands.add_parser(
        "train",
        parents=[common],
        help="train a model",
        usage="limner train [FOLDER] [--minutes N] [--size N] [--from MODEL] [--output FOLDER]\n"
        "                    [--config FILE] [--resume CHECKPOINT] [section.key=value ...]",
        epilog="With a FOLDER and no --config, settings are chosen for your pictures, this "
        "machine, and the time; train.yaml in the run folder has them. Set any configuration key "
        "with training.batch_size=16 or --training.batch_size 16. On Ctrl-C, SIGTERM, or a closed "
        "terminal, the run finishes the current step, saves a checkpoint, and exits with code 75; "
        "the same command resumes it. A second signal stops it immediately.",
    )
    train.add_argument(
        "where",
        nargs="?",
        metavar="FOLDER",
        help="your pictures and captions: a folder or file in any layout of docs/data.md",
    )
    train.add_argument(
        "--minutes", type=positive, help="training time (default: by the number of pictures)"
    )
    train.add_argument("--size", type=int, help="side of the pictures in pixels")
    train.add_argument(
        "--from",
        dest="origin",
        metavar="MODEL",
        help=f"begin with the weights of another model ({A_MODEL})",
    )
    train.add_argument("--output", help="run folder (default with a FOLDER: outputs/ and its name)")
    train.add_argument(
        "--config", type=Path, help=f"{A_CONFIGURATION} (default: all keys have their defaults)"
    )
    train.add_argument(
        "--resume",
        metavar="CHECKPOINT",
        help="checkpoint folder, `latest` (in output_dir), or `no`; by default, a run with the "
        "same settings is resumed",
    )
    for name in FOLDER_FLAGS:
        flag(train, f"--{name}", help=argparse.SUPPRESS)
    train.set_defaults(run=run, takes_overrides=True)


def run(options: argparse.Namespace) -> None:
    say_what_begins(options)
    from limner.apps.own_pictures.expected import if_too_few
    from limner.apps.own_pictures.outcome import outcome
    from limner.evaluation.end_of_run import drawing_time, evaluate_run
    from limner.evaluation.summary import how_to_measure_all, learned_by_heart, sentences_of_run
    from limner.reports.run_report import write_report
    from limner.training.folder import run_lock
    from limner.training.trainer import Trainer

    config, resume = settings(options)
    trainer = Trainer(config, resume=resume)
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
        if made := outcome(trainer.folder):
            say(made)
        for sentence in [*sentences_of_run(results), *how_to_measure_all(results, trainer.folder)]:
            say(sentence)
        for sentence in learned_by_heart(results):
            say(sentence)
        too_few = if_too_few(trainer.folder, config, trainer.state, len(trainer.data.trained.rows))
        if too_few:
            say(too_few)
        fast = not too_few and not config.data.buckets
        for line in what_next(trainer.folder, page, prompts_to_try(trainer.data), fast):
            say(line)


def say_what_begins(options: argparse.Namespace) -> None:
    """A sign of life before torch is imported, which takes seconds and, on a busy machine, half a
    minute."""
    if os.environ.get("RANK", "0") != "0":
        return
    words = str(options.config or options.where or options.resume or "the default settings")
    pictures = options.where is not None and options.config is None and not is_yaml(words)
    setting = "=" in words and not Path(words).exists()
    log.info(f"looking at the pictures in {words}" if pictures and not setting else "starting")


def settings(options: argparse.Namespace) -> tuple[Config, str | None]:
    """The configuration to train with, and which checkpoint it resumes from, as for `Trainer`."""
    from limner.apps.own_pictures.request import Request
    from limner.apps.own_pictures.start import start
    from limner.checkpoint.inherit import load_run_config
    from limner.training.resume import resume_config

    where, overrides = options.where, list(options.overrides)
    if where is not None and "=" in where and not Path(where).exists():
        where, overrides = None, [where, *overrides]
    if where is not None and is_yaml(where):
        if options.config is not None:
            raise LimnerError(f"both --config {options.config} and {where} are given; use only one")
        options.config, where = Path(where), None
    where, data = _folder_by_flag(options, where)
    overrides = [*data, *overrides]
    given = Request(where, options.minutes, options.size, options.origin, options.output, overrides)
    if where is not None and options.config is None:
        began = start(given)
        for sentence in began.said:
            say(sentence)
        return began.config, options.resume or began.resume
    overrides = given.settings()
    config = resume_config(options.resume, options.config, overrides)
    return config or load_run_config(options.config, overrides), options.resume


def _folder_by_flag(options: argparse.Namespace, where: str | None) -> tuple[str | None, list[str]]:
    """FOLDER as a flag of other trainers names it; with a configuration, its keys."""
    given = {name: getattr(options, name) for name in FOLDER_FLAGS}
    given = {name: value for name, value in given.items() if value is not None}
    chooses = options.config is None and options.resume is None
    if len(given) == 1 and where is None and chooses:
        ((name, where),) = given.items()
        log.info(f"--{name} {where} is limner train {where}: what is not set is chosen")
        return where, []
    keys = {name: KEYS.get(name, f"data.{name}") for name in given}
    return where, [f"{keys[n]}={json.dumps(v, ensure_ascii=False)}" for n, v in given.items()]


def prompts_to_try(data: Data) -> list[str]:
    """Four captions, two of them held out if there are so many: four seeds of one prompt look
    alike if its picture was learned by heart."""
    from limner.data.order import evenly_spaced

    trained, held_out = data.trained.rows, data.held_out.rows
    unseen = [held_out[i] for i in evenly_spaced(len(held_out), 2)]
    seen = [trained[i] for i in evenly_spaced(len(trained), 4 - len(unseen))]
    return list(dict.fromkeys(plain_words(row.captions[0], 8) for row in (*seen, *unseen)))


def what_next(folder: Path, page: Path, prompts: Sequence[str], fast: bool = True) -> list[str]:
    """What to look at, and commands to try.

    Args:
        fast: whether it may be distilled.
    """
    run = folder.as_posix()
    quoted = " ".join(f'"{prompt}"' for prompt in prompts)
    said = [
        f"\nLook at {folder / 'samples.png'} and {page}, and try",
        f"  limner generate {run} {quoted} --sheet --output drawn.png",
        f"  limner play {run}   # on a page in the browser",
    ]
    if fast:
        said.append(f"  limner distill {run} --output {run}-fast   # to draw in one or two steps")
    return said
