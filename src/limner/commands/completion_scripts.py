"""Completion scripts for shells that shtab does not write for."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Flag:
    """A flag of a command."""

    name: str
    help: str
    values: tuple[str, ...]
    takes_value: bool
    takes_file: bool
    """Whether its value may be a file or folder."""


@dataclass(frozen=True)
class Command:
    """A command of Limner."""

    name: str
    help: str
    flags: list[Flag]
    words: tuple[str, ...]
    """What its argument is one of, where it is one of a few words."""


def commands_of(parser: argparse.ArgumentParser) -> Iterator[Command]:
    choices: Any = next(a for a in parser._actions if isinstance(a.choices, dict))
    helps = {action.dest: action.help or "" for action in choices._get_subactions()}
    for name, command in choices.choices.items():
        arguments = [a for a in command._actions if not a.option_strings]
        words = tuple(str(word) for a in arguments for word in a.choices or ())
        yield Command(name, helps.get(name, ""), flags_of(command), words)


def flags_of(parser: argparse.ArgumentParser) -> list[Flag]:
    return [
        Flag(
            option,
            "" if action.help is None else str(action.help % vars(action)),
            tuple(map(str, action.choices or ())),
            action.nargs != 0,
            action.nargs != 0 and action.type in (None, str, Path),
        )
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--") and action.help != argparse.SUPPRESS
    ]


def fish(parser: argparse.ArgumentParser) -> str:
    """For ~/.config/fish/completions/limner.fish."""
    lines = [IS_COMMAND]
    for flag in flags_of(parser):
        lines.append(_flag_in_fish("__fish_use_subcommand", flag))
    for command in commands_of(parser):
        there = f"'__limner_is {command.name}'"
        lines.append(
            f"complete -c limner -f -n __fish_use_subcommand -a {command.name} "
            f"-d {_quoted(command.help)}"
        )
        if command.words:
            lines.append(f"complete -c limner -f -n {there} -a {_quoted(' '.join(command.words))}")
        lines += [_flag_in_fish(there, flag) for flag in command.flags]
    return "\n".join(lines) + "\n"


IS_COMMAND = """function __limner_is --description 'whether the command of the line is this one'
    set --local words (commandline -opc)
    test (count $words) -gt 1; and test $words[2] = $argv[1]
end"""
"""What fish has for this takes any word of the line for the command, such as the name of a run."""


def _flag_in_fish(where: str, flag: Flag) -> str:
    line = f"complete -c limner -n {where} -l {flag.name[2:]}"
    if flag.values:
        line += f" -x -a {_quoted(' '.join(flag.values))}"
    elif flag.takes_value:
        line += " -r" if flag.takes_file else " -x"
    return f"{line} -d {_quoted(flag.help)}"


def powershell(parser: argparse.ArgumentParser) -> str:
    """For the profile of that shell ($PROFILE)."""
    table = [
        f"    {_doubled(command.name)} = @({', '.join(map(_doubled, offered(command)))})"
        for command in commands_of(parser)
    ]
    return POWERSHELL.replace("COMMANDS", "\n".join(table))


def offered(command: Command) -> list[str]:
    """What may follow a command."""
    return [*command.words, *(flag.name for flag in command.flags)]


def _quoted(text: str) -> str:
    """In fish: in single quotes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _doubled(text: str) -> str:
    """In single quotes."""
    return "'" + text.replace("'", "''") + "'"


POWERSHELL = """Register-ArgumentCompleter -Native -CommandName limner -ScriptBlock {
  param($word, $line, $position)
  $flags = [ordered]@{
COMMANDS
  }
  $words = @($line.CommandElements | ForEach-Object { $_.ToString() })
  $command = if ($words.Count -gt 1) { $words[1] } else { '' }
  $found = if ($flags.Contains($command) -and -not ($words.Count -eq 2 -and $word)) {
    $flags[$command]
  } else {
    $flags.Keys
  }
  $found | Where-Object { $_ -like "$word*" } | ForEach-Object {
    [System.Management.Automation.CompletionResult]::new($_, $_, 'ParameterValue', $_)
  }
}
"""
WRITERS = {"fish": fish, "powershell": powershell}
