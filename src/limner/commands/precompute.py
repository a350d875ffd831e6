"""`limner precompute`: latents and text embeddings, before training asks for them."""

from __future__ import annotations

import argparse
import os

from limner import console
from limner.commands.common import CONFIGURED, Commands, Parent, configured_by


def add(commands: Commands, common: Parent, configured: Parent) -> None:
    precompute = commands.add_parser(
        "precompute",
        parents=[common, configured],
        help="precompute latents and text embeddings; otherwise training does it when it starts",
        usage=f"limner precompute {CONFIGURED}",
        epilog="Run it several times in parallel, or with torchrun, to share the work.",
    )
    precompute.set_defaults(run=run, takes_overrides=True)


def run(options: argparse.Namespace) -> None:
    from limner.training.precompute import precompute

    console.mute(os.environ.get("RANK", "0") != "0")  # of those that torchrun started
    precompute(configured_by(options))
