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
        help="upload a model to the Hub, for diffusers and Limner, with a model card",
        epilog="Log in with `hf auth login` or set HF_TOKEN; set HF_ENDPOINT to use another Hub.",
    )
    publish.add_argument("checkpoint", metavar="CHECKPOINT", help=A_MODEL)
    publish.add_argument(
        "--repo", required=True, metavar="NAME", help="repository: owner/name, or just name"
    )
    publish.add_argument(
        "--private", action="store_true", help="create the repository as private, if it is new"
    )
    publish.add_argument(
        "--space", nargs="?", const="", metavar="NAME",
        help="also upload the web page of limner export --format web as a Space, which draws in "
            "the browser; NAME: as for --repo (default: that of --repo)",
    )  # fmt: skip
    publish.add_argument(
        "--dry-run", action="store_true", help="show the files and the model card without uploading"
    )
    publish.add_argument("--license", help="license of the model, such as apache-2.0")
    publish.add_argument("--data_name", help="description of the training data for the model card")
    publish.add_argument("--data_license", help="license of the pictures and captions")
    flag(publish, "--base_model", metavar="NAME",
         help="Hub id of the base model, if the run does not record it")  # fmt: skip
    publish.add_argument(
        "--prompt",
        action="append",
        default=[],
        help="prompt of a sample for the model card; can be repeated",
    )
    publish.add_argument(
        "--page", action="store_true",
        help="also upload the page of limner evaluate, which shows training pictures",
    )  # fmt: skip
    flag(publish, "--without_teacher", action="store_true",
         help="do not upload the model that a distilled one was made from")  # fmt: skip
    publish.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32",
        help="precision of the weights (default float32)",
    )  # fmt: skip
    publish.add_argument(
        "--output", type=Path,
        help="also keep the uploaded files in this folder, those of a Space in OUTPUT-space",
    )  # fmt: skip
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
            not options.without_teacher,
        ),
        dtype=options.dtype,
        output=options.output,
        vae=options.vae,
        text_encoder=options.text_encoder,
        space=options.space,
    )
    if address:
        say(address)
