"""What several commands share: parents of their parsers, types of their flags, configurations."""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from limner.choices import DTYPES
from limner.commands.neighbours import (
    as_value,
    check_not_needed,
    is_switch,
    key_of,
    not_needed,
    takes_value,
)
from limner.errors import LimnerError

if TYPE_CHECKING:
    from limner.config import Config

log = logging.getLogger(__name__)

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Parent: TypeAlias = argparse.ArgumentParser

CONFIGURED = "[CONFIG] [section.key=value ...]"
"""How the commands that `configured` is a parent of are called."""
A_CONFIGURATION = "YAML file, or the name of one that comes with Limner, such as shapes"
A_MODEL = "run folder, checkpoint, exported file, or Hub id"


def common() -> Parent:
    """Flags of every command."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info",
        help="debug also logs shapes, value ranges, and timings throughout the model",
    )  # fmt: skip
    parser.add_argument(
        "--no-color", action="store_true", help="disable colours; same as NO_COLOR=1"
    )
    return parser


def configured() -> Parent:
    """Of commands that take a configuration, by position or as a flag, and overrides."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("where", nargs="?", type=Path, metavar="CONFIG", help=A_CONFIGURATION)
    parser.add_argument("--config", type=Path, help="same, as a flag")
    return parser


def configured_by(options: argparse.Namespace) -> Config:
    """The configuration that such a command was given."""
    from limner.checkpoint.inherit import load_run_config

    where: Path | None = options.where
    overrides = list(options.overrides)
    if where is not None and "=" in str(where) and not where.exists():
        overrides.insert(0, str(where))  # `limner estimate section.key=value` without a file
        where = None
    return load_run_config(options.config or where, overrides)


def as_overrides(rest: Sequence[str], section: str = "") -> list[str]:
    """`--section.key value`, `--section.key=value`, and `section.key=value` as the last.

    `--key` without its section, and flags of other trainers, are understood where they mean one key
    (see `limner.commands.neighbours`).

    Args:
        section: where a key without its section is looked for first.
    """
    overrides: list[str] = []
    left = list(rest)
    while left:
        word = left.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        given: str | None = value if equals else None
        if word.startswith("--") and (why := not_needed(name)):
            if not equals and left and takes_value(name):
                given = left.pop(0)
            check_not_needed(name, given)
            log.info(f"--{name} is not needed: {why}")
            continue
        if word.startswith("--") and "." not in name and (key := key_of(name, section)):
            if not equals and _is_value(left, key, name):
                given = left.pop(0)
            overrides.append(f"{key}={as_value(key, given, name)}")
            log.info(f"--{name} is {overrides[-1]}")
            continue
        if "." not in name or not (equals or word.startswith("--")):
            raise LimnerError(
                f"unrecognized argument '{word}'; settings are section.key=value, flags are listed "
                "in --help"
                + (f"; for a configuration file use --config {word}" if is_yaml(word) else "")
            )
        if not equals:
            if not left:
                raise LimnerError(f"'{word}' needs a value: {word} VALUE")
            value = left.pop(0)
        overrides.append(f"{name}={value}")
    return overrides


def settings_among(
    words: Sequence[str], parser: argparse.ArgumentParser
) -> tuple[list[str], list[str]]:
    """Words without the settings among them, and the settings, in their order.

    argparse would take the value of a flag that it does not know for a positional argument, and so
    a flag whose value has a space.
    """
    others: list[str] = []
    settings: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, _ = word.removeprefix("--").partition("=")
        if is_setting(word) and not Path(word).exists():
            settings.append(word)
            continue
        key = None
        if word.startswith("--") and name and not _has(parser, f"--{name}"):
            if not_needed(name):
                settings.append(word)
                if not equals and left and takes_value(name):
                    settings.append(left.pop(0))
                continue
            key = name if "." in name else _key_of(name)
        if key is None:
            others.append(word)
            continue
        settings.append(word)
        if not equals and _is_value(left, key, name):
            settings.append(left.pop(0))
    return others, settings


def _key_of(name: str) -> str | None:
    """What is refused, and why, is said where the settings are read."""
    with contextlib.suppress(LimnerError):
        return key_of(name)
    return None


def _has(parser: argparse.ArgumentParser, word: str) -> bool:
    """Whether it is a flag of the parser, or the beginning of one."""
    return any(flag.startswith(word) for flag in parser._option_string_actions)


def _is_value(left: Sequence[str], key: str, name: str) -> bool:
    """Whether the next of the words that are left is the value of a key whose flag was read."""
    if not left or left[0].startswith("--") or is_setting(left[0]):
        return False
    return not is_switch(key, name) or _switches(left[0])


def _switches(word: str) -> bool:
    """Whether it is a value for a switch, and not the next argument."""
    return word.lower() in ("true", "false", "yes", "no", "on", "off", "auto") or word[:1].isdigit()


def is_setting(word: str) -> bool:
    """section.key=value"""
    return re.match(r"\w+\.\w+=", word) is not None


def is_yaml(word: str) -> bool:
    """Whether a word is the name of a configuration file."""
    return word.lower().endswith((".yaml", ".yml"))


def flag(parser: argparse._ActionsContainer, name: str, **how: Any) -> None:
    """A flag that may be spelled with hyphens, too; help shows the one with underscores."""
    parser.add_argument(name, **how)
    quietly = {"help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
    parser.add_argument(name[:2] + name[2:].replace("_", "-"), dest=name[2:], **{**how, **quietly})


def parts_flags(parser: argparse._ActionsContainer) -> None:
    """Where the pretrained parts of a model are."""
    parser.add_argument("--vae", help="path of the autoencoder, if it was moved")
    flag(parser, "--text_encoder", help="path of the text encoder, if it was moved")


def device_flags(parser: argparse._ActionsContainer) -> None:
    """What draws, and in which precision."""
    parser.add_argument(
        "--device", choices=("cuda", "mps", "cpu"), help="default: the best available"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32",
        help="bfloat16 is faster if the hardware supports it, and gives nearly the same pictures",
    )  # fmt: skip


def seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 2^63 - 1")
    return value


def positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not greater than 0")
    return value
