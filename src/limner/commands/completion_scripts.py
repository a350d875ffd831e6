"""Completion scripts for shells that shtab does not write for."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Flag:
    """A flag of a command."""

    name: str
    help: str
    values: tuple[str, ...]
    takes_value: bool


def commands_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, list[Flag]]]:
    """Name, help, and flags of each command."""
    choices: Any = next(a for a in parser._actions if isinstance(a.choices, dict))
    helps = {action.dest: action.help or "" for action in choices._get_subactions()}
    for name, command in choices.choices.items():
        flags = [
            Flag(
                option,
                "" if action.help in (None, argparse.SUPPRESS) else str(action.help % vars(action)),
                tuple(map(str, action.choices or ())),
                action.nargs != 0,
            )
            for action in command._actions
            for option in action.option_strings
            if option.startswith("--") and action.help != argparse.SUPPRESS
        ]
        yield name, helps.get(name, ""), flags


def fish(parser: argparse.ArgumentParser) -> str:
    """For ~/.config/fish/completions/limner.fish."""
    lines = ["complete -c limner -n __fish_use_subcommand -s h -l help -d 'show help'"]
    for name, text, flags in commands_of(parser):
        lines.append(f"complete -c limner -f -n __fish_use_subcommand -a {name} -d {_quoted(text)}")
        for flag in flags:
            line = f"complete -c limner -n '__fish_seen_subcommand_from {name}' -l {flag.name[2:]}"
            if flag.values:
                line += f" -x -a {_quoted(' '.join(flag.values))}"
            elif flag.takes_value:
                line += " -r"
            lines.append(f"{line} -d {_quoted(flag.help)}")
    return "\n".join(lines) + "\n"


def powershell(parser: argparse.ArgumentParser) -> str:
    """For the profile of that shell ($PROFILE)."""
    table = [
        f"    {_doubled(name)} = @({', '.join(_doubled(flag.name) for flag in flags)})"
        for name, _, flags in commands_of(parser)
    ]
    return POWERSHELL.replace("COMMANDS", "\n".join(table))


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
