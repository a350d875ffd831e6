"""`limner demo`: from nothing to pictures in ten minutes."""

from __future__ import annotations

import argparse
import logging

from limner.commands.common import Commands, Parent, positive

log = logging.getLogger(__name__)


def add(commands: Commands, common: Parent) -> None:
    demo = commands.add_parser(
        "demo",
        parents=[common],
        help="train on built-in pictures and generate some, in ten minutes",
    )
    demo.add_argument(
        "--minutes", type=positive, default=10.0, help="total time in minutes (default 10)"
    )
    demo.add_argument(
        "--output", default="outputs/demo", help="output folder (default outputs/demo)"
    )
    demo.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    log.info("starting the demo")  # a sign of life before torch is imported, which takes seconds
    from limner.apps.demo import run_demo

    run_demo(options.minutes, options.output)
