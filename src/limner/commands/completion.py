"""`limner completion`: a script for the shell, which then completes commands and flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from limner.commands.common import Commands, Parent
from limner.commands.completion_scripts import WRITERS
from limner.console import say
from limner.errors import LimnerError

SHELLS = ("bash", "zsh", "tcsh", "fish", "powershell")
"""The first three by shtab."""


def add(commands: Commands, common: Parent, whole: Callable[[], argparse.ArgumentParser]) -> None:
    """`whole` makes the parser of all commands."""
    completion = commands.add_parser(
        "completion",
        parents=[common],
        help="print a shell completion script for commands and flags",
        epilog="New shells load it. It lists the flags of this version: generate it again after "
        "an update.",
    )
    completion.add_argument(
        "shell", choices=SHELLS, metavar="SHELL", help="bash, zsh, tcsh, fish, or powershell"
    )
    completion.set_defaults(run=run, whole=whole)


def run(options: argparse.Namespace) -> None:
    if options.shell in WRITERS:
        say(WRITERS[options.shell](options.whole()), end="")
        return
    try:
        import shtab
    except ImportError:
        raise LimnerError("completion requires shtab; run pip install shtab") from None

    say(shtab.complete(options.whole(), shell=options.shell))
