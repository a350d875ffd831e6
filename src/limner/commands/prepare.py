"""`limner prepare`: data sets of others into our layout."""

from __future__ import annotations

import argparse
from pathlib import Path

from limner.commands.common import Commands, Parent


def add(commands: Commands, common: Parent) -> None:
    prepare = commands.add_parser(
        "prepare", parents=[common], help="turn a COCO folder or any of ours into metadata.json"
    )
    prepare.add_argument(
        "--type", choices=("coco", "custom"), default="custom", help="what the input is"
    )
    prepare.add_argument("--input", type=Path, required=True, help="folder to read")
    prepare.add_argument("--output", type=Path, required=True, help="folder to write")
    prepare.add_argument("--num_samples", type=int, help="at most so many pictures")
    prepare.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from limner.data.prepare import prepare

    prepared = prepare(options.type, options.input, options.output, options.num_samples)
    print(f"{prepared.count} pictures in {options.output}")
    if prepared.refused:
        first = prepared.refused[0]
        print(
            f"{len(prepared.refused)} rows could not be used, all listed in "
            f"{options.output / 'refused.json'}; the first: {first.key}: {first.reason}"
        )
