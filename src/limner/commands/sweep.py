"""`limner sweep`: how to draw with a trained model, found by measurement."""

from __future__ import annotations

import argparse

from limner.commands.common import Commands, Parent, flag, parts_flags, positive
from limner.console import say
from limner.errors import LimnerError


def add(commands: Commands, common: Parent) -> None:
    sweep = commands.add_parser(
        "sweep",
        parents=[common],
        help="find the best sampling settings of a model at each cost, and make them its default",
        epilog="Measurements are saved in the checkpoint's sweep.json: after an interruption, the "
        "same command continues.",
    )
    sweep.add_argument("checkpoint", metavar="CHECKPOINT", help="run folder or checkpoint")
    sweep.add_argument(
        "--costs", type=int, nargs="+", default=None, metavar="N",
        help="costs to optimise for: network evaluations per picture, guided steps count twice "
            "(default 4 8 16 32 64, of a distilled model the numbers of steps it has learned)",
    )  # fmt: skip
    sweep.add_argument(
        "--pictures", type=int, default=None, metavar="N",
        help="pictures generated per setting in the last round (default 64; a quarter of them in "
            "the first)",
    )  # fmt: skip
    sweep.add_argument(
        "--minutes",
        type=positive,
        default=None,
        help="time limit of the search in minutes (default 30)",
    )
    sweep.add_argument(
        "--store", type=int, metavar="COST",
        help="store the best setting of this cost as default (without it: the cheapest that is "
            "within noise of the best)",
    )  # fmt: skip
    flag(sweep, "--no_store", action="store_true",
         help="only report; do not change the checkpoint's settings")  # fmt: skip
    sweep.add_argument("--dry-run", dest="no_store", action="store_true", help="same as --no_store")
    sweep.add_argument(
        "--guide", metavar="CHECKPOINT",
        help="weaker model for autoguidance, such as an earlier checkpoint; nothing is stored",
    )  # fmt: skip
    sweep.add_argument(
        "--device", choices=("cuda", "mps", "cpu"), help="default: the best available"
    )
    parts_flags(sweep)
    sweep.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from limner.apps.sweep.sweep import IMAGES, MINUTES, SHEET, sweep
    from limner.apps.sweep.table import comparison

    costs = sorted(set(options.costs)) if options.costs else None
    if costs and costs[0] < 1:
        raise LimnerError(f"--costs {costs[0]}: must be at least 1")
    images = IMAGES if options.pictures is None else options.pictures
    if images < 2:
        raise LimnerError(f"--pictures {images}: must be at least 2, preferably 64")
    if options.no_store and options.store is not None:
        raise LimnerError("--store and --no_store cannot be combined")
    result = sweep(
        options.checkpoint,
        costs,
        images,
        options.minutes or MINUTES,
        store=not options.no_store,
        store_cost=options.store,
        guide=options.guide,
        device=options.device,
        vae=options.vae,
        text_encoder=options.text_encoder,
    )
    say()
    say(comparison(result))
    say(result.checkpoint / SHEET)
    if not result.finished:
        say(
            "the time limit was reached before all settings were tried. Run the same command to "
            "continue"
        )
