"""What the README says to type works as typed; its names exist; both languages agree."""

import re
import shlex
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from shown import SCRIPTS, shape_of

from limner.checkpoint.inherit import load_run_config
from limner.cli import build_parser
from limner.commands.common import as_overrides, is_yaml
from limner.config import Config, known_keys
from limner.config.loading import shipped
from limner.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
READMES = ("README.md", "README.zh-CN.md")
TOURS = ("docs/tour.md", "docs/tour.zh-CN.md")
"""The rest of the README: what it shows comes after what that shows."""
RUNS = sorted(f"docs/runs/{path.name}" for path in (ROOT / "docs" / "runs").glob("*.md"))
GUIDES = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
DOCUMENTS = (*READMES, *GUIDES, "CHANGELOG.md", "CONTRIBUTING.md", *RUNS)
TWICE = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (ROOT, ROOT / "docs", ROOT / "docs" / "runs", ROOT / "docs" / "reference")
    for path in folder.glob("*.zh-CN.md")
)
"""Documents that are there in both languages."""


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str) -> list[tuple[str, str]]:
    """(language, content) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text(name), re.MULTILINE | re.DOTALL)


def limner_words(line: str) -> list[list[str]]:
    """The words after `limner` of each limner command in a line of a shell."""
    commands: list[list[str]] = [[]]
    for word in shlex.split(line, comments=True):
        if word in ("&&", ";", "|", "||", ">", ">>"):
            commands.append([])
        else:
            commands[-1].append(word)
    found = []
    for words in commands:
        if words[:1] == ["limner"]:
            found.append(words[1:])
        elif words[:1] == ["python"] and words[1].startswith("src/scripts/"):
            assert (ROOT / words[1]).is_file()
            found.append([SCRIPTS[Path(words[1]).name], *words[2:]])
    return found


def shown_commands() -> list[list[str]]:
    lines = [
        line
        for name in DOCUMENTS
        for language, content in blocks(name)
        if language in ("bash", "sh", "console")
        for line in content.replace("\\\n", " ").splitlines()
    ]
    # And those in running text, and in the comments of the configurations.
    lines += [
        found
        for name in DOCUMENTS
        for found in re.findall(r"`(limner [^`]+)`", text(name).replace("\n", " "))
    ]
    for path in (ROOT / "configs").glob("*.yaml"):
        comment = path.read_text(encoding="utf-8").partition("\ndata:")[0]
        lines += re.findall(r"limner (?:[a-z]+ --config|estimate) \S+", comment)
    return [words for line in lines for words in limner_words(line)]


def shown_files() -> dict[str, Any]:
    """Configurations that a reader is told to write: blocks that begin with the file's name."""
    return {
        content.partition("\n")[0].removeprefix("# "): yaml.safe_load(content)
        for name in DOCUMENTS
        for language, content in blocks(name)
        if language == "yaml" and re.match(r"# \S+\.yaml\n", content)
    }


def test_every_shown_command_is_understood() -> None:
    commands, written = shown_commands(), shown_files()
    assert {words[0] for words in commands} >= {"demo", "train", "generate", "prepare"}
    for words in commands:
        if len(words) == 1 and words[0] != "demo":
            continue  # a command's name in running text
        if words == ["prepare", "--type", "coco"]:
            continue  # the rest of it is the reader's
        options, rest = build_parser().parse_known_args(words)
        if words[0] in ("train", "estimate") and options.where:
            where = str(options.where)
            if "=" in where:
                rest, options.where = [where, *rest], None
            elif not is_yaml(where) and where not in shipped():
                load_run_config(None, as_overrides(rest))  # the folder is the reader's
                continue
        if words[0] in ("train", "precompute", "estimate", "train-autoencoder"):
            configuration = options.config or getattr(options, "where", None)
            if configuration is not None and configuration.name in written:
                load_run_config(written[configuration.name], as_overrides(rest))
                continue
            if str(configuration).endswith("train.yaml"):  # chosen for the reader's pictures
                load_run_config(None, as_overrides(rest))
                continue
            if configuration is not None and configuration.name in shipped():
                configuration = shipped()[configuration.name]
            assert configuration is None or (ROOT / configuration).is_file(), words
            # The model that a run starts from is the reader's (tests/runs/test_lora.py has one).
            own = [
                o for o in as_overrides(rest) if not o.startswith(("training.init_from", "lora"))
            ]
            load_run_config(configuration and ROOT / configuration, own)
        elif words[0] in ("evaluate", "prepare", "check-data", "distill"):
            student = ["model.flow_map=true"] if words[0] == "distill" else []
            load_run_config(None, [*student, *as_overrides(rest)])
        else:
            assert rest == [], words


def made_by(words: list[str]) -> set[str]:
    """Folders and files that a command of the README makes."""
    made = {word for flag, word in pairwise(words) if flag == "--output"}
    if words[0] == "demo":
        made.add("outputs/demo")
    if words[0] == "train" and words[1:] and not words[1].startswith("-") and "=" not in words[1]:
        made.add(f"outputs/{words[1]}")
    elif words[0] == "train" and "--resume" not in words:
        named = [word.partition("=")[2] for word in words if "training.output_dir=" in word]
        made |= set(named or ["outputs"])
    return {name.removeprefix("./") for name in made}


@pytest.mark.parametrize("names", [*zip(READMES, TOURS, strict=True)])
def test_no_command_uses_what_a_later_one_makes(names: tuple[str, str]) -> None:
    shown = [block for name in names for block in blocks(name)]
    lines = [line for kind, code in shown if kind == "bash" for line in code.splitlines()]
    commands = [words for line in lines for words in limner_words(line)]
    made: dict[str, int] = {}
    for number, words in enumerate(commands):
        for output in made_by(words):
            made.setdefault(output, number)
    assert {"outputs/demo", "outputs", "outputs/tuned", "vae", "apple.png"} <= set(made)
    for number, words in enumerate(commands):
        for word in words:
            place = word.rpartition("=")[2].removeprefix("./")
            known = [n for n in made if place == n or place.startswith(f"{n}/")]
            if known:
                assert made[max(known, key=len)] <= number, f"{words} uses {place}"
            else:
                assert not place.startswith("outputs"), f"{words}: nothing makes {place}"


@pytest.mark.parametrize("chinese", TWICE)
def test_both_languages_say_the_same_in_the_same_order(chinese: str) -> None:
    """Headings, paragraphs, tables, lists, pictures, and every block of code, one to one."""
    english = chinese.replace(".zh-CN.md", ".md")
    assert shape_of(text(english)) == shape_of(text(chinese))
    for name, other in ((english, chinese), (chinese, english)):
        assert Path(other).name in text(name).partition("\n## ")[0], f"{name} links to {other}"


def test_every_guide_is_there_in_both_languages() -> None:
    english = {name for name in (*READMES, *GUIDES, *RUNS) if not name.endswith(".zh-CN.md")}
    assert {name.replace(".md", ".zh-CN.md") for name in english} <= set(TWICE)


@pytest.mark.parametrize("mark", ["run", "test"])
def test_the_newcomers_commands_are_marked_once_in_each(mark: str) -> None:
    commands = []
    for name in READMES:
        found = re.findall(rf"<!-- newcomer: {mark} -->\n```bash\n(.*?)\n```", text(name))
        assert len(found) == text(name).count(f"<!-- newcomer: {mark} -->") == 1
        commands += found
    assert commands[0] == commands[1]
    needed = re.findall(r"-r (\S+)", commands[0])
    assert needed
    for name in needed:
        assert (ROOT / name).is_file()
    assert ("limner demo" if mark == "run" else "pytest") in commands[0]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_key_that_is_named_exists(name: str) -> None:
    sections = "|".join(Config.model_fields)
    files = r"(?!py\b|pt\b|json|safetensors|yaml|html|onnx|zh-|md\b)"
    # Not within a path such as inference/sampling.py.
    named = set(re.findall(rf"(?<![\w/.-])((?:{sections})\.{files}\w+)", text(name)))
    assert named <= set(known_keys())
    if name in TOURS:
        assert "training.num_epochs" in named


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_that_is_linked_is_there(name: str) -> None:
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", text(name))
    folder = (ROOT / name).parent
    missing = [link for link in links if not (folder / link).exists()]
    assert missing == []


def test_the_python_that_is_shown_draws(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(
        tiny_config("training.max_steps=1", f"training.output_dir={tmp_path}/outputs/demo")
    ).train()
    monkeypatch.chdir(tmp_path)
    programs = [content for language, content in blocks(TOURS[0]) if language == "python"]
    assert programs
    for program in programs:
        exec(program, {})
    assert list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("name", READMES)
def test_no_figure_is_still_to_be_filled_in(name: str) -> None:
    assert re.findall(r"@@\w*@@|TODO|XXX", text(name)) == []


def test_the_map_of_the_source_is_true() -> None:
    shown = blocks("CONTRIBUTING.md")
    (tree,) = [content for _, content in shown if content.startswith("src/limner/\n")]
    lines = tree.splitlines()[1:]
    inside = [word for line in lines if line.startswith("  ") for word in line.split()]
    named = [w for w in inside if re.fullmatch(r"[a-z]+(/|\.py)", w)]
    assert {"config/", "data/", "models/", "diffusion/", "training/", "cli.py"} <= set(named)
    source = ROOT / "src" / "limner"
    for word in named:
        assert [p for p in source.rglob(word.rstrip("/")) if p.is_dir() == word.endswith("/")], word
    folders = [p.name for p in source.iterdir() if (p / "__init__.py").is_file()]
    assert set(folders) <= {word.rstrip("/") for word in named}
