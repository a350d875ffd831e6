"""`limner demo`: from nothing to pictures in ten minutes."""

from __future__ import annotations

import argparse

from limner.commands.common import Commands, Parent, positive


def add(commands: Commands, common: Parent) -> None:
    demo = commands.add_parser(
        "demo", parents=[common], help="learn from built-in pictures and draw, in ten minutes"
    )
    demo.add_argument("--minutes", type=positive, default=10.0, help="for all of it (default 10)")
    demo.add_argument("--output", default="outputs/demo", help="folder (default outputs/demo)")
    demo.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from limner.apps.demo import run_demo

    run_demo(options.minutes, options.output)
