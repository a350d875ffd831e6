"""`limner caption`: captions for pictures that have none."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from limner.commands.common import Commands, Parent, flag
from limner.console import inform_on_stderr, one_line, say
from limner.errors import LimnerError
from limner.messages import plural

log = logging.getLogger(__name__)


def add(commands: Commands, common: Parent) -> None:
    caption = commands.add_parser(
        "caption",
        parents=[common],
        help="caption the pictures of a folder with a captioning model, one .txt per picture",
        epilog="After an interruption, run it again: pictures that have a caption are skipped.",
    )
    caption.add_argument(
        "folder", type=Path, metavar="FOLDER", help="folder with pictures, searched recursively"
    )
    caption.add_argument(
        "--model", required=True, metavar="NAME_OR_FOLDER",
        help="Hub id or local folder of a transformers image-text-to-text model",
    )  # fmt: skip
    caption.add_argument(
        "--prompt", help="prompt for a chat model, or the beginning of the caption for BLIP or GIT"
    )
    caption.add_argument(
        "--overwrite",
        action="store_true",
        help="overwrite existing .txt files (default: keep them)",
    )
    flag(caption, "--batch_size", type=int, default=8, metavar="N",
         help="batch size (default 8; halved if memory runs out)")  # fmt: skip
    flag(caption, "--max_new_tokens", type=int, default=60, metavar="N",
         help="maximum length of a caption in tokens (default 60)")  # fmt: skip
    flag(caption, "--num_samples", type=int, metavar="N", help="maximum number of pictures")
    caption.add_argument("--device", default="auto", help="auto (default), cuda, mps, or cpu")
    caption.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from limner.apps.captioning.caption import caption_lock

    for name in ("batch_size", "max_new_tokens", "num_samples"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise LimnerError(f"--{name} {value}: must be at least 1")
    with caption_lock(options.folder):
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    from limner.apps.captioning.caption import caption_images, images_to_caption

    keys, kept = images_to_caption(options.folder, options.overwrite)
    if not keys:
        say(
            f"all {kept:,} {plural(kept, 'picture')} of {options.folder} have captions already; "
            "use --overwrite to replace them"
        )
        return 0

    from limner.apps.captioning.captioner import Captioner
    from limner.device import choose_device, choose_precision, part_precision

    device = choose_device(options.device)
    dtype = part_precision(choose_precision("auto", device))
    captioner = Captioner(options.model, device, dtype, options.prompt)
    inform_on_stderr()
    log.info(
        f"{(n := len(keys)):,} {plural(n, 'picture')} to caption, {kept:,} with captions already; "
        f"{captioner.name}"
    )
    told = caption_images(
        options.folder.expanduser().absolute(),
        keys,
        lambda images: captioner(images, options.max_new_tokens),
        options.batch_size,
        options.num_samples,
    )
    say(
        f"{told.written:,} {plural(told.written, 'caption')} written, {kept:,} kept, "
        f"{(n := len(told.refused)):,} {plural(n, 'picture')} could not be captioned"
        + (f", {told.left:,} left for another time" if told.left else "")
    )
    for refused in told.refused:
        say(f"  {one_line(refused.reason.splitlines()[0])}")
    if told.odd:
        odd = f"{len(told.odd):,} {plural(len(told.odd), 'caption')}"
        say(f"{odd} to check, perhaps wrong (limner check-data lists them, too):")
        for key, said in told.odd[:10]:
            say(f"  {one_line(key)}: {one_line(said)}")
    say("read some before training on them; captioning models invent and miss things")
    return 0 if told.written or not told.refused else 2
