"""What a person meets in the shell: help with examples, completion, colours."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from limner.checkpoint.inherit import load_run_config
from limner.cli import build_parser, main
from limner.commands import completion, completion_scripts
from limner.commands.common import as_overrides, configured_by
from limner.commands.examples import EXAMPLES

ANSI = "\x1b["


def parsers() -> dict[str, argparse.ArgumentParser]:
    (choices,) = [a.choices for a in build_parser()._actions if a.choices is not None]
    return dict(choices)


def test_every_command_has_examples_at_the_end_of_its_help() -> None:
    assert set(parsers()) == set(EXAMPLES)
    for name, parser in parsers().items():
        *_, shown = parser.format_help().partition("\nexamples:\n")
        assert [line.strip() for line in shown.splitlines()] == EXAMPLES[name]


@pytest.mark.parametrize("example", [line for lines in EXAMPLES.values() for line in lines])
def test_every_example_is_understood(example: str) -> None:
    words = shlex.split(example.partition(" > ")[0])
    assert words[0] == "limner"
    options, rest = build_parser().parse_known_args(words[1:])
    if not options.takes_overrides:
        assert rest == []
        return
    where = str(getattr(options, "where", None) or "")
    settings = [where] if "=" in where else []
    given = [s for s in [*settings, *as_overrides(rest)] if "init_from" not in s]
    load_run_config(None, given)  # the model that one starts from is the reader's


@pytest.mark.parametrize("flag", [(), ("--config",)])
@pytest.mark.parametrize("command", ["estimate", "precompute", "doctor"])
def test_settings_after_a_configuration_count(
    command: str, flag: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text("training: {max_steps: 2, logging_steps: 7}", encoding="utf-8")
    words = [command, *flag, str(file), "training.max_steps=3", "training.save_steps=5"]
    options, rest = build_parser().parse_known_args(words)
    options.overrides = as_overrides(rest)
    training = configured_by(options).training
    assert (training.max_steps, training.save_steps, training.logging_steps) == (3, 5, 7)


def test_limner_alone_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "check-data" in capsys.readouterr().out


def test_a_misspelled_command_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["generte", "outputs/demo", "a cat"])
    assert left.value.code == 2
    assert "did you mean 'generate'?" in capsys.readouterr().err


def completed(line: str, script: str) -> list[str]:
    """What bash offers at the end of the line."""
    words = line.split(" ")
    program = (
        f"{script}\nCOMP_WORDS=({' '.join(shlex.quote(w) for w in words)})\n"
        f"COMP_CWORD={len(words) - 1}\nCOMPREPLY=()\n"
        '_shtab_limner\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash"], input=program, capture_output=True, text=True, timeout=60)
    return done.stdout.split()


def test_bash_completes_commands_and_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert "check-data" in script
    assert "--guidance_scale" in script
    if shutil.which("bash") is None:
        return  # Windows; what the script holds is compared above
    assert set(completed("limner ge", script)) == {"generate"}
    assert completed("limner generate --guidance_sc", script) == ["--guidance_scale"]


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "check-data" in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["fish", "powershell"])
def test_every_command_and_flag_is_in_the_scripts_of_our_own(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name, command in parsers().items():
        assert re.search(rf"(-a {name} )|('{name}' = )", script), name
        lines = [line for line in script.splitlines() if re.search(rf"(_is|^ *) ?'?{name}'", line)]
        for action in command._actions:
            for flag in action.option_strings if action.help != argparse.SUPPRESS else []:
                shown = f"-l {flag[2:]} " if shell == "fish" else f"'{flag}'"
                assert flag[:2] != "--" or any(shown in line for line in lines), (name, flag)
    assert "Traceback" not in script
    assert "%(" not in script


@pytest.fixture(scope="module")
def fish(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """fish("limner tr"): what fish offers at the end of the line in a folder with data/ in it; the
    script lies where docs/terminal.md says."""
    program = shutil.which("fish")
    if program is None:
        pytest.skip("fish is not installed (Debian: apt-get install fish)")
    home = tmp_path_factory.mktemp("home")
    script = home / ".config" / "fish" / "completions" / "limner.fish"
    script.parent.mkdir(parents=True)
    script.write_text(completion_scripts.fish(build_parser()), encoding="utf-8")
    (home / "data").mkdir()
    elsewhere = {k: v for k, v in os.environ.items() if not k.startswith("XDG_")}
    environment = {**elsewhere, "HOME": str(home), "LC_ALL": "C.UTF-8"}

    def offered(line: str) -> list[str]:
        done = subprocess.run(
            [program, "-c", f"complete -C {shlex.quote(line)}"],
            cwd=home, env=environment, capture_output=True, encoding="utf-8", timeout=60,
        )  # fmt: skip
        assert done.stderr == ""
        return [found.partition("\t")[0] for found in done.stdout.splitlines()]

    return offered


def test_fish_completes_commands_flags_and_values(fish: Callable[[str], list[str]]) -> None:
    assert set(fish("limner ")) == set(parsers())
    assert fish("limner tr") == ["train", "train-autoencoder"]
    assert fish("limner --v") == ["--version"]
    assert fish("limner generate run --guidance_s") == ["--guidance_scale"]
    assert fish("limner generate run --scheduler_type d") == ["ddim", "ddpm", "dpmsolver++"]
    assert sorted(fish("limner completion ")) == sorted(completion.SHELLS)
    assert fish("limner train da") == fish("limner train --config da") == ["data/"]
    assert fish("limner train --minutes ") == []


def test_a_run_that_is_called_as_a_command_is_none_to_fish(
    fish: Callable[[str], list[str]],
) -> None:
    assert fish("limner generate train --min") == []
    assert fish("limner train generate --min") == ["--minutes"]


def refused(how: str, *flags: str, **variables: str) -> str:
    """What `limner generate` without a prompt says on stderr, which is a pipe or a terminal."""
    surely = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    environment = {**surely, "TERM": "xterm", **variables}
    command = [sys.executable, "-m", "limner", "generate", *flags]
    if how == "pipe":
        done = subprocess.run(
            command, env=environment, capture_output=True, encoding="utf-8", timeout=60
        )
        return done.stderr
    import pty

    ours, theirs = pty.openpty()
    done = subprocess.run(
        command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, timeout=60
    )
    os.close(theirs)
    said = os.read(ours, 65536).decode("utf-8")
    os.close(ours)
    return said


def test_there_is_no_colour_in_a_pipe_unless_it_is_forced() -> None:
    assert "missing checkpoint or prompt" in refused("pipe")
    assert ANSI not in refused("pipe")
    assert ANSI in refused("pipe", FORCE_COLOR="1")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_errors_are_red_on_a_terminal_unless_it_is_not_wanted() -> None:
    assert f"{ANSI}31m" in refused("terminal")
    assert ANSI not in refused("terminal", NO_COLOR="1")
    assert ANSI not in refused("terminal", "--no-color")
    assert ANSI not in refused("terminal", TERM="dumb")
