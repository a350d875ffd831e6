"""`limner export`: a model to take elsewhere."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from limner.commands.common import A_MODEL, Commands, Parent, parts_flags
from limner.console import say


def add(commands: Commands, common: Parent) -> None:
    export = commands.add_parser(
        "export",
        parents=[common],
        help="export the weights as a single file, as a folder that diffusers loads, as ONNX files "
        "with a program that draws, or as a page that draws in a browser",
    )
    export.add_argument("checkpoint", metavar="CHECKPOINT", help=A_MODEL)
    export.add_argument("--output", type=Path, required=True, help="output folder or file")
    export.add_argument(
        "--format", choices=("safetensors", "diffusers", "onnx", "web"), default="safetensors",
        help="safetensors: a single file, which limner generate can also use (default); "
            "diffusers: a folder that works without Limner; onnx: a folder that draws with numpy "
            "and onnxruntime alone; web: one HTML file that draws in a browser, opened from the "
            "disk, without a server",
    )  # fmt: skip
    export.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16", "int8"), default=None,
        help="precision of the weights (default float32; float16 and bfloat16 take half the "
            "space); of a web page or of ONNX float32, float16, or int8 (a page's default), a "
            "quarter",
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

    if options.format == "web":
        from limner.apps.web_page.build import export_web_page

        page = export_web_page(
            options.checkpoint,
            options.output,
            options.dtype,
            averaged=options.weights == "averaged",
        )
        for line in sizes(page):
            say(line)
        say(f"\n{WEB}")
        return
    if options.format == "onnx":
        from limner.apps.onnx_folder.build import export_onnx

        folder = export_onnx(
            options.checkpoint,
            options.output,
            options.dtype,
            options.vae,
            options.text_encoder,
            averaged=options.weights == "averaged",
        )
        for line in sizes(folder):
            say(line)
        say(f"\n{ONNX.format(shlex.join(['python', (folder / 'draw.py').as_posix()]))}")
        return
    written = export(
        options.checkpoint,
        options.output,
        options.format,
        options.dtype or "float32",
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
ONNX = """\
pip install numpy onnxruntime pillow
{} "a red apple" --seed 42 --output output.png"""
WEB = "Open it in a browser: it draws there, without a server, and sends nothing."
"""What draws from each format."""
