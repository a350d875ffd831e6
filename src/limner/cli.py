"""The command line: words to calls, nothing else. What each command does is in limner.commands."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence

from limner.commands import (
    caption,
    check_data,
    demo,
    doctor,
    estimate,
    evaluate,
    export,
    generate,
    generate_classes,
    precompute,
    prepare,
    publish,
    report,
    sweep,
    train,
    train_autoencoder,
)
from limner.commands.common import as_overrides, common, configured
from limner.errors import LimnerError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. What people did wrong is said without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Prompts may hold letters that the code page of a Windows console does not have.
            stream.reconfigure(errors="replace")
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(levelname)s %(name)s: %(message)s"
    )
    # `limner` alone decides what is told at debug level; libraries would drown it.
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("limner").setLevel(options.log_level.upper())
    try:
        flags = [word for word in rest if word.startswith("-")]
        if options.takes_overrides:
            options.overrides = as_overrides(rest)
        elif options.takes_words and not flags:
            # argparse ends a list of words at the first flag; those after it are the same list's.
            getattr(options, options.takes_words).extend(rest)
        elif rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        return options.run(options) or 0
    except LimnerError as error:
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        who = f"limner, process {os.environ.get('RANK')}" if several else "limner"
        print(f"{who}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except OSError as error:  # a disk that is full, a folder that may not be written, ...
        reason = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        print(f"limner: {reason}; check the path, the space, and your permissions", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("limner: interrupted; what was saved is kept", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="limner",
        description="Train your own text-to-image Diffusion Transformer, and draw with it.",
    )
    parser.set_defaults(log_level="info", takes_overrides=False, takes_words=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    every, config = common(), configured()
    demo.add(commands, every)
    train.add(commands, every)
    generate.add(commands, every)
    precompute.add(commands, every, config)
    estimate.add(commands, every, config)
    train_autoencoder.add(commands, every, config)
    doctor.add(commands, every, config)
    check_data.add(commands, every)
    caption.add(commands, every)
    prepare.add(commands, every)
    report.add(commands, every)
    evaluate.add(commands, every)
    sweep.add(commands, every)
    export.add(commands, every)
    publish.add(commands, every)
    generate_classes.add(commands, every)
    return parser


if __name__ == "__main__":
    sys.exit(main())
