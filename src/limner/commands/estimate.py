"""`limner estimate`: what a run will take."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from limner.commands.common import (
    A_MODEL,
    Commands,
    Parent,
    configured_by,
    is_setting,
    is_yaml,
    positive,
)
from limner.console import inform_on_stderr, say
from limner.errors import LimnerError

if TYPE_CHECKING:
    from limner.config import Config

log = logging.getLogger(__name__)


def add(commands: Commands, common: Parent, configured: Parent) -> None:
    estimate = commands.add_parser(
        "estimate",
        parents=[common, configured],
        help="estimate parameters, memory, disk space, and time of a run",
        usage="limner estimate [CONFIG | FOLDER | RUN] [--minutes N] [--size N] [--from MODEL]\n"
        "                       [section.key=value ...] [--full] [--json]",
        epilog="Of a FOLDER of pictures: what limner train FOLDER would choose, without writing "
        "anything. Of a RUN: its own configuration.",
    )
    estimate.add_argument("--minutes", type=positive, help="training time")
    estimate.add_argument("--size", type=int, help="side of the pictures in pixels")
    estimate.add_argument(
        "--from",
        dest="origin",
        metavar="MODEL",
        help=f"begin with the weights of another model ({A_MODEL})",
    )
    estimate.add_argument(
        "--full",
        action="store_true",
        help="measure short runs as training does them: more exact, takes minutes",
    )
    estimate.add_argument("--json", action="store_true", help="print JSON")
    estimate.set_defaults(run=run, takes_overrides=True)


def run(options: argparse.Namespace) -> None:
    if options.json:
        inform_on_stderr()
    where: Path | None = options.where
    pictures = where is not None and options.config is None and not is_yaml(str(where))
    pictures = pictures and where is not None and where.exists() and not (where / CONFIG).is_file()
    # A sign of life before torch is imported, which takes seconds.
    log.info(f"looking at the pictures in {where}" if pictures else "measuring a few updates")
    from limner.apps.estimate import estimate

    config = of_pictures(options) if pictures else of_configuration(options)
    found = estimate(config, options.full)
    if options.json:
        say(json.dumps(found.as_dict(), indent=1))
        return
    for line in found.lines():
        say(line)


CONFIG = "config.yaml"
"""What the folder of a run, or of a checkpoint, has, and a folder of pictures has not."""


def of_pictures(options: argparse.Namespace) -> Config:
    """What `limner train FOLDER` would train with."""
    from limner.apps.own_pictures.request import Request
    from limner.apps.own_pictures.start import planned

    asked = Request(
        str(options.where), options.minutes, options.size, options.origin, None, options.overrides
    )
    plan = planned(asked)
    for sentence in plan.said:
        log.info(sentence)
    return plan.config


def of_configuration(options: argparse.Namespace) -> Config:
    """Of a file, of a run, or of the default keys."""
    from limner.apps.own_pictures.request import Request

    where: Path | None = options.where
    if where is not None and options.config is not None and not is_setting(str(where)):
        raise LimnerError(
            f"both --config {options.config} and {where} are given; use only one of them"
        )
    if where is not None and (where / CONFIG).is_file():
        options.where = where / CONFIG
    flags = Request(None, options.minutes, options.size, options.origin, None, [])
    options.overrides = [*flags.settings(), *options.overrides]
    return configured_by(options)
