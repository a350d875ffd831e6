"""The command line: words to calls, nothing else. What each command does is in limner.commands."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from limner import console
from limner.commands import (
    caption,
    check_data,
    completion,
    demo,
    distill,
    doctor,
    estimate,
    evaluate,
    export,
    generate,
    play,
    precompute,
    prepare,
    publish,
    report,
    serve,
    sweep,
    train,
    train_autoencoder,
    watch,
)
from limner.commands.common import Commands, as_overrides, common, configured, settings_among
from limner.commands.examples import HelpWithExamples, Parser
from limner.console import say, say_error
from limner.errors import LimnerError
from limner.files.full_disk import DiskFull
from limner.threads import share_the_machine
from limner.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. What people did wrong is said without a traceback."""
    share_the_machine()  # before anything imports torch
    console.set_up()
    try:
        return run(list(sys.argv[1:] if arguments is None else arguments))
    finally:
        console.finish()


def run(words: list[str]) -> int:
    parser = build_parser()
    if not words:
        parser.print_help()
        return 0
    if near := nearest_command(parser, words[0]):
        parser.error(f"unknown command {words[0]!r}; did you mean {near!r}?")
    settings: list[str] = []
    if (command := overridable(parser, words[0])) is not None:
        others, settings = settings_among(words[1:], command)
        words = [words[0], *others]
    options, rest = parser.parse_known_args(words)
    if options.takes_words and "--" in words:  # what follows is words, whatever it begins with
        end = words.index("--")
        options, rest = parser.parse_known_args(words[:end])
        if not any(word.startswith("-") for word in rest):
            rest, words = [], [*rest, *words[end + 1 :]]
            getattr(options, options.takes_words).extend(words)
    if options.no_color:
        os.environ["NO_COLOR"] = "1"  # rich reads it, and so do the processes that are started
    console.set_up_logging(options.log_level)
    expand_home(options)
    try:
        flags = [word for word in rest if word.startswith("-")]
        if options.takes_overrides:
            options.overrides = as_overrides([*rest, *settings], words[0])
        elif options.takes_words and not flags:
            # argparse ends a list of words at the first flag; those after it are the same list's.
            getattr(options, options.takes_words).extend(rest)
        elif rest:
            near = nearest_flag(parser, words[0], flags[0]) if flags else None
            hint = f"; did you mean {near}?" if near else ""
            parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
        return options.run(options) or 0
    except LimnerError as error:
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        who = f"limner, process {os.environ.get('RANK')}" if several else "limner"
        say_error(f"{who}: {error}")
        return error.exit_code
    except DiskFull as error:
        say_error(
            f"limner: {error.filename} could not be written: {error}; free some disk space, or "
            "choose another disk"
        )
        return 2
    except OSError as error:  # a folder that may not be written, ...
        reason = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        say_error(f"limner: {reason}; check the path, the space, and your permissions")
        return 2
    except KeyboardInterrupt:
        say("limner: interrupted; what has been saved is kept", err=True)
        return 130


def expand_home(options: argparse.Namespace) -> None:
    """`~` at the beginning of what flags name: a shell leaves it in `--output=~/a.png`."""
    for name, value in vars(options).items():
        if isinstance(value, Path):
            setattr(options, name, Path(os.path.expanduser(value)))
        elif isinstance(value, str) and name in PLACES:
            setattr(options, name, os.path.expanduser(value))
        elif isinstance(value, list) and all(isinstance(one, Path) for one in value):
            setattr(options, name, [Path(os.path.expanduser(one)) for one in value])


PLACES = (
    *("checkpoint", "where", "guide", "resume", "init_image", "mask", "vae", "text_encoder"),
    *("model", "output", "reference", "inception", "dinov2", "clip"),
)
"""Flags that are paths, or may be something else, too, such as a Hub id."""


def overridable(parser: argparse.ArgumentParser, word: str) -> argparse.ArgumentParser | None:
    """The parser of a command that takes settings; None: it is another word."""
    (choices,) = [a.choices for a in parser._actions if isinstance(a.choices, dict)]
    command = choices.get(word)
    return command if command is not None and command.get_default("takes_overrides") else None


def nearest_command(parser: argparse.ArgumentParser, word: str) -> str | None:
    """The command that a misspelled word is like; None if it is one, a flag, or like none."""
    (choices,) = [a.choices for a in parser._actions if a.choices is not None]
    if word.startswith("-") or word in choices:
        return None
    return next(iter(difflib.get_close_matches(word, list(choices), n=1)), None)


def nearest_flag(parser: argparse.ArgumentParser, command: str, word: str) -> str | None:
    """The flag of a command that a misspelled one is like, if there is any."""
    (choices,) = [a.choices for a in parser._actions if isinstance(a.choices, dict)]
    known = [name for name in choices[command]._option_string_actions if name.startswith("--")]
    return next(iter(difflib.get_close_matches(word.partition("=")[0], known, n=1)), None)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="limner",
        description="Train your own text-to-image Diffusion Transformer and generate pictures.",
    )
    parser.add_argument("--version", action="version", version=f"limner {__version__}")
    parser.set_defaults(log_level="info", no_color=False, takes_overrides=False, takes_words=None)
    subparsers = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=HelpWithExamples
    )
    commands = cast("Commands", subparsers)
    every, config = common(), configured()
    demo.add(commands, every)
    train.add(commands, every)
    generate.add(commands, every)
    play.add(commands, every)
    watch.add(commands, every)
    distill.add(commands, every)
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
    serve.add(commands, every)
    completion.add(commands, every, build_parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
