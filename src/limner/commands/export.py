"""`limner export`: a model to take elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path

from limner.commands.common import Commands, Parent


def add(commands: Commands, common: Parent) -> None:
    export = commands.add_parser(
        "export",
        parents=[common],
        help="write the weights as one file to share, or as a folder that diffusers loads",
    )
    export.add_argument("checkpoint", metavar="CHECKPOINT", help="run or checkpoint folder")
    export.add_argument("--output", type=Path, required=True, help="folder (or file) to write")
    export.add_argument(
        "--format", choices=("safetensors", "diffusers"), default="safetensors",
        help="safetensors: one file, which limner generate draws from, too (default); diffusers: "
        "a folder that draws without Limner",
    )  # fmt: skip
    export.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32",
        help="of the weights (default float32; the others take half the space)",
    )  # fmt: skip
    export.add_argument("--vae", help="where the autoencoder is now, if it was moved")
    export.add_argument("--text_encoder", help="where the text encoder is now, if it was moved")
    export.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from limner.publishing.export import export

    written = export(
        options.checkpoint,
        options.output,
        options.format,
        options.dtype,
        options.vae,
        options.text_encoder,
    )
    print(written)
    if options.format == "diffusers":
        print(
            "from diffusers import DiffusionPipeline\n"
            f"pipe = DiffusionPipeline.from_pretrained({str(written)!r}, trust_remote_code=True)"
        )
