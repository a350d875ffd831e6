"""`limner generate`: prompts to pictures."""

from __future__ import annotations

import argparse
import itertools
import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from limner.choices import SOLVERS
from limner.commands.common import A_MODEL, Commands, Parent, device_flags, flag, parts_flags, seed
from limner.console import inform_on_stderr, progress_shown, say
from limner.errors import LimnerError
from limner.messages import plural

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)


def add(commands: Commands, common: Parent) -> None:
    generate = commands.add_parser(
        "generate", parents=[common], help="generate pictures from prompts"
    )
    generate.add_argument("where", nargs="?", metavar="CHECKPOINT", help=A_MODEL)
    generate.add_argument(
        "what", nargs="*", metavar="PROMPT", help="prompts, in quotes; one picture each"
    )
    generate.add_argument("--checkpoint", help="same, as a flag")
    generate.add_argument("--prompt", help="same, as a flag")
    generate.add_argument(
        "--config", type=Path, help="not needed: a checkpoint contains its configuration"
    )
    generate.add_argument(
        "--output", type=Path, default=Path("output.png"), help="output file (PNG)"
    )
    generate.add_argument(
        "--seed",
        type=seed,
        default=0,
        help="random seed; the same seed gives the same picture (default 0)",
    )
    flag(generate, "--num_images", type=int, default=1, metavar="N",
         help="pictures per prompt, with seeds counting up from --seed (default 1)")  # fmt: skip
    generate.add_argument(
        "--sheet", action="store_true", help="also write a contact sheet with all pictures"
    )
    flag(generate, "--num_inference_steps", type=int, help="number of denoising steps")
    flag(generate, "--scheduler_type", choices=SOLVERS, help="sampler (solver)")
    generate.add_argument(
        "--shift", type=float, help="timestep shift; above 1: more steps at high noise"
    )
    generate.add_argument("--height", type=int, help="in pixels (default: as trained)")
    generate.add_argument("--width", type=int, help="in pixels (default: as trained)")
    flag(generate, "--aspect_ratio", metavar="3:2",
         help="width:height; uses the closest size that was trained")  # fmt: skip
    guidance = generate.add_argument_group("guidance")
    flag(
        guidance,
        "--guidance_scale",
        type=float,
        help="guidance scale; 1: no guidance; 2 to 5: follows the prompt more closely",
    )
    flag(guidance, "--guidance_interval", type=float, nargs=2, metavar=("LOW", "HIGH"),
         help="noise levels at which guidance applies, from 0 (clean) to 1 (noise)")  # fmt: skip
    flag(
        guidance,
        "--guidance_type",
        choices=("cfg", "cfg_zero_star", "apg"),
        help="guidance formula",
    )
    flag(guidance, "--negative_prompt", help="what the pictures should not contain")
    guidance.add_argument(
        "--guide",
        metavar="CHECKPOINT",
        help="weaker model for autoguidance, such as an earlier checkpoint",
    )
    between = generate.add_argument_group("variations")
    flag(between, "--init_image", metavar="PICTURE", help="picture to start from (image to image)")
    between.add_argument(
        "--strength",
        type=float,
        help="how far to change it, from 0 to 1 (default 0.6, with --mask 1; 1: ignores it)",
    )
    between.add_argument(
        "--mask",
        metavar="PICTURE",
        help="as large as --init_image, white where that is drawn anew; all else stays",
    )
    between.add_argument(
        "--outpaint",
        type=margins,
        metavar="LEFT,TOP,RIGHT,BOTTOM",
        help="pixels to add to --init_image at each side, which are drawn",
    )
    between.add_argument(
        "--interpolate", type=int, metavar="N",
        help="N pictures that interpolate from the first prompt to the second, or from --seed to "
            "--end_seed",
    )  # fmt: skip
    flag(between, "--end_seed", type=seed, help="seed of the last picture of --interpolate")
    where = generate.add_argument_group("where and how")
    parts_flags(where)
    device_flags(where)
    where.add_argument(
        "--compile", action="store_true", help="use torch.compile; pays off for many pictures"
    )
    generate.set_defaults(run=run, takes_words="what")


def run(options: argparse.Namespace) -> None:
    from limner.files.folder_lock import FolderLock
    from limner.inference.saving import check_not_foreign, check_savable, save_all

    words = [*([options.where] if options.where is not None else []), *options.what]
    if not options.checkpoint and words:
        options.checkpoint = words.pop(0)  # with the flag, all words without one are prompts
    checkpoint = options.checkpoint
    prompts = [*words, *([options.prompt] if options.prompt is not None else [])]
    if checkpoint is None or not prompts:
        raise LimnerError(
            'missing checkpoint or prompt, for example: limner generate outputs/demo "a cat"'
        )
    inform_on_stderr()  # stdout is the list of pictures
    path: Path = options.output
    check(options, prompts)
    check_no_settings(words)
    check_savable(path, options.height, options.width)
    with FolderLock(
        path, "choose another --output"
    ):  # before torch is imported, which takes seconds
        from limner.checkpoint.inherit import load_run_config
        from limner.config.types import SEEDS
        from limner.data.own_folder import keep_out_of_the_data
        from limner.inference.generator import ImageGenerator
        from limner.inference.sampling import pictures_done
        from limner.memory import in_parts_that_fit
        from limner.models.shape_log import log_shapes

        count = options.interpolate or len(prompts) * options.num_images
        paths = [path.with_stem(f"{path.stem}-{i}") if count > 1 else path for i in range(count)]
        check_not_foreign([*paths, *([sheet_beside(path)] if options.sheet else [])])
        generator = ImageGenerator(
            checkpoint,
            options.scheduler_type,
            options.device,
            options.dtype,
            config=load_run_config(options.config) if options.config else None,
            vae=options.vae,
            text_encoder=options.text_encoder,
            guide=options.guide,
        )
        keep_out_of_the_data(path, generator.config, "--output", checkpoint)
        if options.log_level == "debug":
            log_shapes(generator.model)  # compiled code has no place for its hooks
        elif options.compile:
            generator.compile()
        settings = {name: getattr(options, name) for name in PASSED_ON}
        negative = [options.negative_prompt] if options.negative_prompt else []
        size = options.height, options.width
        for note in generator.notes(
            [*prompts, *negative], *size, aspect_ratio=options.aspect_ratio
        ):
            log.warning(note)
        showing = progress_shown(log, f"{plural(count, 'picture')} drawn", err=True)
        if options.interpolate is not None:
            ends = prompts[0], prompts[-1], options.interpolate, options.seed, options.end_seed
            with showing as tell:
                images = generator.interpolate(
                    *ends, progress=pictures_done(tell, count), **settings
                )
            labels = [f"{i + 1} of {len(images)}" for i in range(len(images))]
        else:
            each = [p for p in prompts for _ in range(options.num_images)]
            seeds = [(options.seed + i) % SEEDS for i in range(options.num_images)] * len(prompts)
            with showing as tell:
                images = in_parts_that_fit(
                    16,
                    lambda size: generator.generate_batch(
                        each,
                        seeds=seeds,
                        batch_size=size,
                        progress=pictures_done(tell, count),
                        **settings,
                    ),
                )
            labels = each
            if options.num_images > 1:
                labels = [f"{p} (seed {s})" for p, s in zip(each, seeds, strict=True)]
        for written in save_all(images, paths):
            say(written)
        if options.sheet:
            say(save_sheet(path, images, labels))
        if count > 1 and (earlier := of_earlier_commands(path, count, options.sheet)):
            names = ", ".join(other.name for other in earlier)
            say(f"not overwritten, from an earlier command: {names}", err=True)


PASSED_ON = (
    *("num_inference_steps", "guidance_scale", "height", "width", "shift", "guidance_interval"),
    *("guidance_type", "negative_prompt", "init_image", "strength", "aspect_ratio"),
    *("mask", "outpaint"),
)
"""Flags that are arguments of the generator by the same name."""


def margins(text: str) -> tuple[int, ...]:
    """LEFT,TOP,RIGHT,BOTTOM; what is wrong with the numbers is said by the generator."""
    return tuple(int(part) for part in text.split(","))


def check(options: argparse.Namespace, prompts: list[str]) -> None:
    """What can be refused before a checkpoint is opened."""
    if options.num_images < 1:
        raise LimnerError(f"--num_images {options.num_images}: must be at least 1")
    if options.interpolate is None:
        if options.end_seed is not None:
            raise LimnerError(
                "--end_seed requires --interpolate N; for several seeds use --num_images"
            )
        return
    if options.num_images > 1:
        raise LimnerError("--interpolate and --num_images cannot be combined")
    if len(prompts) > 2 or (len(prompts) == 1 and options.end_seed is None):
        raise LimnerError(
            f"--interpolate needs two prompts, or one prompt and --end_seed; got {len(prompts)}"
        )


def check_no_settings(words: list[str]) -> None:
    """Raises LimnerError for a setting among the prompts, as other commands take them."""
    from limner.config import known_keys

    for word in words:
        key, equals, _ = word.partition("=")
        if equals and key in known_keys():
            raise LimnerError(
                f"{word} is a setting, but limner generate only takes flags (see limner generate "
                f"--help). To use it as a prompt: --prompt {shlex.quote(word)}"
            )


def sheet_beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}-sheet.png")


def of_earlier_commands(path: Path, count: int, sheet: bool) -> list[Path]:
    """Pictures left by an earlier command with the same --output that drew more than `count`, and
    its sheet if this one has none."""
    from limner.inference.saving import is_drawing

    found = []
    for number in itertools.count(count):
        other = path.with_stem(f"{path.stem}-{number}")
        if not is_drawing(other):
            break
        found.append(other)
    if not sheet and is_drawing(sheet_beside(path)):
        found.append(sheet_beside(path))
    return found


def save_sheet(path: Path, images: list[Image.Image], labels: list[str]) -> Path:
    """A contact sheet beside the pictures, which are shown at their size up to 256 pixels.

    Raises:
        LimnerError: something that is no drawing of Limner's was put there meanwhile.
    """
    from limner.inference.contact_sheet import contact_sheet, save_contact_sheet
    from limner.inference.saving import check_not_foreign

    size = max(96, min(256, *(max(image.size) for image in images)))
    sheet_path = sheet_beside(path)
    check_not_foreign([sheet_path])
    save_contact_sheet(contact_sheet(images, labels, scale_to=size), sheet_path, labels)
    return sheet_path
