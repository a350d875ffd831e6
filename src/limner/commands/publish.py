"""`limner publish`: a model to the Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from limner.commands.common import A_MODEL, Commands, Parent, flag, parts_flags
from limner.console import say


def add(commands: Commands, common: Parent) -> None:
    publish = commands.add_parser(
        "publish",
        parents=[common],
        help="upload a model to the Hub: for diffusers and for Limner, with a model card",
        epilog="Log in with `hf auth login` or set HF_TOKEN; HF_ENDPOINT names another Hub.",
    )
    publish.add_argument("checkpoint", metavar="CHECKPOINT", help=A_MODEL)
    publish.add_argument("--repo", required=True, metavar="NAME", help="owner/name, or name alone")
    publish.add_argument("--private", action="store_true", help="of a repository that is new")
    publish.add_argument(
        "--dry-run", action="store_true", help="show the files and the card, and send nothing"
    )
    publish.add_argument("--license", help="of the model, such as apache-2.0")
    publish.add_argument("--data_name", help="what it learned from, in words for the card")
    publish.add_argument("--data_license", help="of the pictures and captions")
    flag(publish, "--base_model", metavar="NAME",
         help="Hub id of the model that it began from, where the run does not know it")  # fmt: skip
    publish.add_argument(
        "--prompt", action="append", default=[], help="to draw for the card; as often as you like"
    )
    publish.add_argument(
        "--page", action="store_true",
        help="upload the page of limner evaluate, too; it shows pictures that were learned from",
    )  # fmt: skip
    publish.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32",
        help="of the weights (default float32)",
    )  # fmt: skip
    publish.add_argument("--output", type=Path, help="keep what is uploaded in this folder")
    parts_flags(publish)
    publish.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from limner.apps.publishing.upload import Said, publish

    address = publish(
        options.checkpoint,
        options.repo,
        private=options.private,
        dry_run=options.dry_run,
        said=Said(
            options.license,
            options.data_name,
            options.data_license,
            options.base_model,
            tuple(options.prompt),
            options.page,
        ),
        dtype=options.dtype,
        output=options.output,
        vae=options.vae,
        text_encoder=options.text_encoder,
    )
    if address:
        say(address)
