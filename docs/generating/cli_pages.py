"""Every command and its flags; from the parser alone."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from markdown_pieces import code, escaped, say, table

from limner.cli import build_parser

INTRO = {
    "en": """\
# Commands

`limner COMMAND --help` says the same in the terminal. Flags with underscores can be written with
hyphens. Exit codes: 0 done, 1 something is to be mended (`limner doctor`), 2 a mistake that the
message names, 75 stopped by a signal and saved, 130 interrupted. `python docs/generate.py` writes
this page.
""",
    "zh": """\
# 命令

终端里 `limner COMMAND --help` 显示同样的内容。带下划线的参数也可以写成连字符。
退出码：0 完成；1 有需要修复的问题（`limner doctor`）；2 有错误，信息里会说明；
75 收到信号，保存后停止；130 被中断。本页由 `python docs/generate.py` 生成。
""",
}
HEADING = {"en": ("flag", "value", "meaning"), "zh": ("参数", "取值", "含义")}


def cli_page(language: str) -> str:
    """The page as Markdown; language "en" or "zh"."""
    parts = [INTRO[language]]
    for name, parser, about in commands():
        parts.append(f"## limner {name}\n\n{escaped(say(about, language))}\n")
        parts.append(f"```text\n{usage(name, parser)}\n```\n")
        rows = [
            (names(action), values(action), escaped(say(meaning(action), language)))
            for action in parser._actions
            if action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)
        ]
        if rows:
            parts.append(table(HEADING[language], rows) + "\n")
        if parser.epilog:
            parts.append(escaped(say(parser.epilog, language)) + "\n")
    return "\n".join(parts)


def commands() -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """(name, parser, help) of each command."""
    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            said = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, parser in action.choices.items():
                if name in said:  # an alias is not a command of its own
                    yield name, parser, said[name]


def usage(name: str, parser: argparse.ArgumentParser) -> str:
    """As the parser has it, or made of what has to be given: argparse's own wording differs from
    version to version."""
    if parser.usage:
        return str(parser.usage).replace("%(prog)s", f"limner {name}")
    words = [f"limner {name}"]
    for action in parser._actions:
        if not action.option_strings:
            shown = str(action.metavar or action.dest)
            many = action.nargs in ("*", "+")
            shown = f"{shown} ..." if many else shown
            words.append(f"[{shown}]" if action.nargs in ("?", "*") else shown)
        elif action.required:
            words.append(f"{action.option_strings[0]} {metavar(action)}")
    return " ".join([*words, "[flags]"])


def names(action: argparse.Action) -> str:
    if not action.option_strings:
        return code(str(action.metavar or action.dest))
    return ", ".join(map(code, action.option_strings))


def metavar(action: argparse.Action) -> str:
    shown = action.metavar or action.dest.upper()
    return " ".join(shown) if isinstance(shown, tuple) else shown


def values(action: argparse.Action) -> str:
    if action.choices:
        return ", ".join(code(str(choice)) for choice in action.choices)
    if action.nargs == 0 or not action.option_strings:
        return ""
    return code(metavar(action))


def meaning(action: argparse.Action) -> str:
    text = action.help or ""
    return text % {**vars(action), "prog": "limner"} if "%(" in text else text.replace("%%", "%")
