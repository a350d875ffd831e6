"""`limner doctor`: what is wrong with this machine for a run."""

from __future__ import annotations

import argparse
import json

from limner.commands.common import CONFIGURED, Commands, Parent, configured_by
from limner.console import inform_on_stderr, say


def add(commands: Commands, common: Parent, configured: Parent) -> None:
    doctor = commands.add_parser(
        "doctor",
        parents=[common, configured],
        help="check this machine for problems, and show the command that fixes each",
        usage=f"limner doctor {CONFIGURED} [--json]",
        epilog="Exit code 1 if something needs to be fixed.",
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=run, takes_overrides=True)


def run(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from limner.apps.doctor import examine, lines

    if options.json:
        inform_on_stderr()
    findings = examine(configured_by(options))
    if options.json:
        say(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for line in lines(findings):
            say(line)
    return 1 if any(finding.verdict == "fail" for finding in findings) else 0
