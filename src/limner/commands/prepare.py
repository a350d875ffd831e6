"""`limner prepare`: data in any format that is read, as any that is written."""

from __future__ import annotations

import argparse
from pathlib import Path

from limner.choices import TYPES
from limner.commands.common import Commands, Parent, flag
from limner.console import say
from limner.messages import plural

LAYOUTS = ("metadata", "imagefolder", "pairs", "webdataset", "parquet")


def add(commands: Commands, common: Parent) -> None:
    prepare = commands.add_parser(
        "prepare",
        parents=[common],
        help="convert a data set to metadata.json, imagefolder, WebDataset, ...",
        usage="limner prepare --input INPUT --output OUTPUT [flags] [data.key=value ...]",
    )
    prepare.add_argument(
        "--type", choices=TYPES, default="auto",
        help="input format; auto detects it (custom: same as auto)",
    )  # fmt: skip
    prepare.add_argument(
        "--input", required=True, metavar="INPUT",
        help="folder or file, or a pattern or URL of shards; with --type datasets also a Hub id",
    )  # fmt: skip
    prepare.add_argument("--output", type=Path, required=True, help="output folder")
    prepare.add_argument("--to", choices=LAYOUTS, default="metadata", help="output format")
    flag(prepare, "--num_samples", type=int, help="maximum number of pictures")
    flag(
        prepare, "--shard_size", default="256MiB",
        help="for webdataset and parquet: pictures (1000) or bytes (256MiB) per file",
    )  # fmt: skip
    prepare.set_defaults(run=run, takes_overrides=True)


def run(options: argparse.Namespace) -> None:
    from limner.data.convert.convert import prepare

    prepared = prepare(
        options.type,
        options.input,
        options.output,
        options.num_samples,
        to=options.to,
        shard_size=options.shard_size,
        overrides=options.overrides,
    )
    say(f"read: {prepared.description}")
    say(f"{prepared.count} {plural(prepared.count, 'picture')} in {options.output}")
    if prepared.refused:
        first = prepared.refused[0]
        say(
            f"{(n := len(prepared.refused))} {plural(n, 'row')} could not be used, listed in "
            f"{options.output / 'refused.json'}; the first: {first.key}: {first.reason}"
        )
