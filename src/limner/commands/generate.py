"""`limner generate`: prompts to pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

from limner.commands.common import Commands, Parent, seed
from limner.errors import LimnerError

SOLVER_NAMES = ("ddpm", "ddim", "euler", "heun", "dpmsolver++")
"""Those of limner.diffusion.solvers, which imports torch."""


def add(commands: Commands, common: Parent) -> None:
    generate = commands.add_parser(
        "generate", parents=[common], help="draw a picture from a prompt"
    )
    generate.add_argument("where", nargs="?", metavar="CHECKPOINT", help="run or checkpoint folder")
    generate.add_argument("what", nargs="*", metavar="PROMPT", help="one picture each, in quotes")
    generate.add_argument("--checkpoint", help="the same, as a flag")
    generate.add_argument("--prompt", help="the same, as a flag")
    generate.add_argument("--config", type=Path, help="not needed: a checkpoint carries its own")
    generate.add_argument("--output", type=Path, default=Path("output.png"), help="PNG to write")
    generate.add_argument("--num_inference_steps", type=int, help="network calls, about")
    generate.add_argument("--guidance_scale", type=float, help="1: none; 2 to 5: closer to words")
    generate.add_argument("--scheduler_type", choices=SOLVER_NAMES, help="the solver")
    generate.add_argument("--height", type=int, help="pixels (default: as trained)")
    generate.add_argument("--width", type=int, help="pixels (default: as trained)")
    generate.add_argument(
        "--seed", type=seed, default=0, help="same seed, same picture (default 0)"
    )
    generate.add_argument("--vae", help="where the autoencoder is now, if it was moved")
    generate.add_argument("--text_encoder", help="where the text encoder is now, if it was moved")
    generate.add_argument("--device", choices=("cuda", "mps", "cpu"), help="default: the best")
    generate.set_defaults(run=run, takes_words="what")


def run(options: argparse.Namespace) -> None:
    from PIL import Image

    from limner.config import load_config
    from limner.debug import log_shapes
    from limner.inference.generator import ImageGenerator

    checkpoint = options.checkpoint or options.where
    prompts = [*options.what, *([options.prompt] if options.prompt is not None else [])]
    if options.checkpoint and options.where is not None:
        prompts.insert(0, options.where)  # the only words without a flag are the prompt's
    if checkpoint is None or not prompts:
        raise LimnerError('a checkpoint and a prompt, please: limner generate outputs/demo "a cat"')
    path: Path = options.output
    if path.is_dir() or path.suffix.lower() not in Image.registered_extensions():
        raise LimnerError(f"--output {path} is no name of a picture file, such as apple.png")
    generator = ImageGenerator(
        checkpoint,
        options.scheduler_type,
        options.device,
        config=load_config(options.config) if options.config else None,
        vae=options.vae,
        text_encoder=options.text_encoder,
    )
    if options.log_level == "debug":
        log_shapes(generator.model)
    pictures = generator.generate_batch(
        prompts,
        options.num_inference_steps,
        options.guidance_scale,
        options.seed,
        options.height,
        options.width,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        numbered = path.with_stem(f"{path.stem}-{number}") if len(pictures) > 1 else path
        picture.save(numbered)
        print(numbered)
