"""`limner export`: a model to take elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path

from limner.commands.common import A_MODEL, Commands, Parent, parts_flags
from limner.console import say


def add(commands: Commands, common: Parent) -> None:
    export = commands.add_parser(
        "export",
        parents=[common],
        help="export the weights as a single file, or as a folder that diffusers loads",
    )
    export.add_argument("checkpoint", metavar="CHECKPOINT", help=A_MODEL)
    export.add_argument("--output", type=Path, required=True, help="output folder or file")
    export.add_argument(
        "--format", choices=("safetensors", "diffusers"), default="safetensors",
        help="safetensors: a single file, which limner generate can also use (default); "
            "diffusers: a folder that works without Limner",
    )  # fmt: skip
    export.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32",
        help="precision of the weights (default float32; the others take half the space)",
    )  # fmt: skip
    export.add_argument(
        "--weights", choices=("averaged", "last"), default="averaged",
        help="averaged: EMA weights, which give better pictures (default); last: weights of the "
            "last update",
    )  # fmt: skip
    parts_flags(export)
    export.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from limner.apps.publishing.export import export, sizes

    written = export(
        options.checkpoint,
        options.output,
        options.format,
        options.dtype,
        options.vae,
        options.text_encoder,
        averaged=options.weights == "averaged",
    )
    for line in sizes(written):
        say(line)
    snippet = DIFFUSERS if options.format == "diffusers" else LIMNER
    say(f"\n{snippet.format(written.as_posix())}")


LIMNER = """\
from limner import ImageGenerator

generator = ImageGenerator({!r})
generator.generate("a red apple", seed=42).save("output.png")"""
DIFFUSERS = """\
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({!r}, trust_remote_code=True)
seed = torch.Generator().manual_seed(42)
pipe("a red apple", generator=seed).images[0].save("output.png")"""
"""What draws from each format."""
