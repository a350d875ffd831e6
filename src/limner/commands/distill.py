"""`limner distill`: a finished model to one that draws in one or two steps."""

from __future__ import annotations

import argparse

from limner.commands.common import A_MODEL, Commands, Parent, positive


def add(commands: Commands, common: Parent) -> None:
    distill = commands.add_parser(
        "distill",
        parents=[common],
        help="make a model draw in one or two steps",
        usage="limner distill CHECKPOINT --output FOLDER [--minutes N] [section.key=value ...]",
        epilog="The teacher draws trained captions once, in 8 steps, with its own guidance; the "
        "student, a copy of it, learns to take several of these steps at once. Configure it with "
        "the keys distill.*. On Ctrl-C, SIGTERM, or a closed terminal, the run saves a checkpoint "
        "and exits with code 75; the same command resumes it.",
    )
    distill.add_argument("checkpoint", metavar="CHECKPOINT", help=f"the teacher: {A_MODEL}")
    distill.add_argument("--output", required=True, help="folder of the run")
    distill.add_argument(
        "--minutes", type=positive, default=None,
        help="minutes of training (default: a third of the teacher's, at least 1, at most 60)",
    )  # fmt: skip
    distill.set_defaults(run=run, takes_overrides=True)


def run(options: argparse.Namespace) -> None:
    from limner.apps.distill import distill

    distill(options.checkpoint, options.output, options.minutes, options.overrides)
