"""`limner estimate`: what a run will take."""

from __future__ import annotations

import argparse
import json

from limner.commands.common import CONFIGURED, Commands, Parent, configured_by
from limner.console import inform_on_stderr, say


def add(commands: Commands, common: Parent, configured: Parent) -> None:
    estimate = commands.add_parser(
        "estimate",
        parents=[common, configured],
        help="estimate parameters, memory, disk space, and time of a run",
        usage=f"limner estimate {CONFIGURED} [--full] [--json]",
    )
    estimate.add_argument(
        "--full",
        action="store_true",
        help="measure short runs as training does them: more exact, takes minutes",
    )
    estimate.add_argument("--json", action="store_true", help="print JSON")
    estimate.set_defaults(run=run, takes_overrides=True)


def run(options: argparse.Namespace) -> None:
    from limner.apps.estimate import estimate

    if options.json:
        inform_on_stderr()
    found = estimate(configured_by(options), options.full)
    if options.json:
        say(json.dumps(found.as_dict(), indent=1))
        return
    for line in found.lines():
        say(line)
