"""`limner generate-classes`: class pictures from the published DiT's weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from limner.commands.common import Commands, Parent, seed
from limner.console import say
from limner.errors import LimnerError


def add(commands: Commands, common: Parent) -> None:
    classes = commands.add_parser(
        "generate-classes",
        parents=[common],
        help="draw classes with published DiT weights (DiT-XL-2-256x256.pt, or diffusers' folder)",
    )
    classes.add_argument("weights", metavar="WEIGHTS", help="file, folder, or Hub id")
    classes.add_argument("labels", nargs="+", type=int, metavar="LABEL", help="207: a retriever")
    classes.add_argument("--vae", help="default: that of the folder, or stabilityai/sd-vae-ft-mse")
    classes.add_argument("--output", type=Path, default=Path("output.png"), help="PNG to write")
    classes.add_argument("--num_inference_steps", type=int, default=250, help="default 250")
    classes.add_argument("--guidance_scale", type=float, default=4.0, help="1: none; default 4")
    classes.add_argument("--scheduler_type", choices=("ddpm", "ddim"), default="ddpm")
    classes.add_argument(
        "--guidance_channels", type=int, default=3,
        help="channels of the latents that are guided (default 3, as published)",
    )  # fmt: skip
    classes.add_argument("--seed", type=seed, default=0, help="of the first; then one more each")
    classes.add_argument("--num_heads", type=int, help="of sizes that were not published")
    classes.add_argument("--device", choices=("cuda", "mps", "cpu"), help="default: the best")
    classes.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from PIL import Image

    from limner.inference.class_generator import ClassImageGenerator
    from limner.inference.saving import check_not_foreign, remember, save_picture

    path: Path = options.output
    if path.is_dir() or path.suffix.lower() not in Image.registered_extensions():
        raise LimnerError(f"--output {path} is no name of a picture file, such as dog.png")
    count = len(options.labels)
    paths = [path.with_stem(f"{path.stem}-{i}") if count > 1 else path for i in range(count)]
    check_not_foreign(paths)
    generator = ClassImageGenerator(options.weights, options.vae, options.device, options.num_heads)
    pictures = generator.generate(
        options.labels,
        [options.seed + place for place in range(len(options.labels))],
        options.num_inference_steps,
        options.guidance_scale,
        options.scheduler_type,
        options.guidance_channels,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, (picture, numbered) in enumerate(zip(pictures, paths, strict=True)):
        how = {"label": options.labels[number], "seed": options.seed + number}
        save_picture(remember(picture, how), numbered)
        say(numbered)
