"""What documents show (commands, configurations, programs), read out of them and run as it stands.

In a folder of the smallest things by the names that documents use: pictures in data/, a run in
outputs/, configs/train_config.yaml, and src/scripts/. What is shown is changed in nothing; settings
that make it quick are put after it, and the last of two settings counts.
"""

import contextlib
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image
from recording_hub import TOKEN, Recorded, point_client_at
from tiny import TINY

from limner.cli import main
from limner.config import Config, load_config
from limner.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
IMAGES = 16
SCRIPTS = {"train.py": "train", "inference.py": "generate", "prepare_data.py": "prepare"}
QUICK: Mapping[str, tuple[str, ...]] = {
    "train": ("training.compile_model=false", "training.num_workers=0"),
    "sweep": ("--costs", "2", "--pictures", "4"),
    "evaluate": ("--num_images", "4", "evaluation.other_images=2"),
}
"""Put after each shown command of that name."""


CELL = re.compile(r"(?<!\\)\|")
"""What stands between the cells of a table."""


COMMENT = re.compile(r"(?:^| +)# .*$", re.MULTILINE)
"""Of a block of code, which each language may have in its own words."""


SMALLEST = [o for o in TINY if not o.startswith(("data.dataset_name", "data.num_samples"))]
"""Of whatever data."""
OF_FOUR_STEPS = [
    *SMALLEST,
    *("data.train_split=0.6", "training.max_steps=4", "training.save_steps=2"),
    *("training.preview_prompts=null", "training.keep_best=false"),
]
"""What makes configs/train_config.yaml small."""


class Block(NamedTuple):
    heading: str
    """Of the section it is in, as it is written."""
    language: str
    content: str


def blocks_of(document: str) -> list[Block]:
    """Every fenced block of a Markdown document, in its order."""
    found: list[Block] = []
    heading, language, lines = "", None, []
    for line in document.splitlines():
        if line.startswith("```"):
            if language is None:
                language, lines = line[3:], []
            else:
                found.append(Block(heading, language, "\n".join(lines) + "\n"))
                language = None
        elif language is not None:
            lines.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("# ")
    assert language is None, "a block without its end"
    return found


def shape_of(document: str) -> list[str]:
    """A document as a list of what it is made of, for comparing two languages.

    Headings with their levels, tables with their columns and rows, lists with their items, blocks
    with their content but for comments, pictures by their file, quotes, and marks for programs.
    """
    shape: list[str] = []
    for part in re.split(r"(^```.*?^```$)", document, flags=re.MULTILINE | re.DOTALL):
        if part.startswith("```"):
            shape.append(COMMENT.sub("", part))
            continue
        before = ""
        for line in part.splitlines():
            kind = ""
            if match := re.match(r"#+ ", line):
                kind = f"heading {len(match[0]) - 1}"
            elif line.startswith("|"):
                kind = f"row of {len(CELL.findall(line)) - 1}"
            elif match := re.match(r"( *)([-*]|\d+\.) ", line):
                kind = f"item {len(match[1])} {'1' if match[2][0].isdigit() else '-'}"
            elif match := re.match(r"!\[.*\]\((.*)\)", line):
                kind = f"picture {match[1]}"
            elif line.startswith("<!--"):
                kind = line
            elif line.startswith("$$"):
                kind = "formula"
            elif line.strip() and before in ("", "<!--"):
                kind = "text"
            if kind:
                shape.append(kind)
            before = "<!--" if line.startswith("<!--") else line.strip()
    return shape


def workplace(folder: Path) -> Path:
    """The folder that commands run in: a run of four steps that is back at its second one, in
    outputs/, and the checkpoint that it would end with, in whole/."""
    (folder / "data" / "images").mkdir(parents=True)
    random = np.random.default_rng(0)
    rows = []
    for number in range(1, IMAGES + 1):
        coarse = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((16, 16), Image.Resampling.NEAREST)
        name = f"images/image_{number:06d}.jpg"
        image.save(folder / "data" / name)
        rows.append({"image": name, "text": f"a cat on a chair, number {number}"})
    (folder / "data" / "metadata.json").write_text(json.dumps(rows), "utf-8")
    shutil.copytree(ROOT / "src" / "scripts", folder / "src" / "scripts")
    (folder / "configs").mkdir()
    config = load_config(ROOT / "configs" / "train_config.yaml", OF_FOUR_STEPS)
    (folder / "configs" / "train_config.yaml").write_text(config.to_yaml(), "utf-8")
    with contextlib.chdir(folder):
        Trainer(config).train()
        Path("outputs/checkpoint-4").rename("whole")
        Path("outputs/checkpoint-2").rename("outputs/checkpoint-1000")  # as documents call it
    return folder


@dataclass
class Told:
    """What came of running blocks."""

    folder: Path
    printed: str = ""
    commands: list[list[str]] = field(default_factory=list)
    """Those that ran, as lists of words."""
    configs: list[Config] = field(default_factory=list)
    """Each shown configuration, on top of the small one."""
    names: dict[str, object] = field(default_factory=dict)
    """What the programs left behind."""
    blocks: int = 0


class Runner:
    """Runs blocks in a folder, which must be the working directory.

    Args:
        quick: words to put after shown commands, by the command's name, beside QUICK.
        smaller: overrides for shown configurations, besides those of QUICK["train"].
    """

    def __init__(
        self,
        folder: Path,
        quick: Mapping[str, Sequence[str]] | None = None,
        smaller: Sequence[str] = (),
    ) -> None:
        self.told = Told(folder)
        self.quick = {**QUICK, **(quick or {})}
        self.smaller = smaller

    def run(self, blocks: Sequence[Block]) -> Told:
        for block in blocks:
            getattr(self, f"run_{block.language}")(block.content)
            self.told.blocks += 1
        return self.told

    def run_bash(self, content: str) -> None:
        for line in content.replace("\\\n", " ").splitlines():
            for words in split(line):
                self.run_command(words)

    def run_command(self, words: list[str]) -> None:
        self.told.commands.append(words)
        program, *rest = words
        if program == "limner":
            code = self.call(lambda: main([*rest, *self.after(rest[0], rest[1:])]))
        elif program == "python" and rest[0].startswith("src/scripts/"):
            name = SCRIPTS[Path(rest[0]).name]
            code = self.call(lambda: script([*rest, *self.after(name, rest[1:])]))
        elif program == "python":
            code = subprocess.run([sys.executable, *rest], check=True).returncode
        elif program == "mkdir":
            assert rest[0] == "-p"
            Path(rest[1]).mkdir(parents=True, exist_ok=True)
            code = 0
        elif program == ".":
            assert (Path(rest[0]).is_file()) or sys.platform == "win32"
            code = 0
        elif (program, rest[0]) == ("pip", "install"):
            code = self.would_install(rest[1:])
        else:
            raise AssertionError(f"nothing here runs {words}")
        assert code in (0, None), f"{words}: exit code {code}\n{self.told.printed[-2000:]}"
        put_back()

    def after(self, command: str, words: Sequence[str]) -> Sequence[str]:
        """Words to put after a command of Limner."""
        return self.quick.get(command, ())

    def would_install(self, words: list[str]) -> int:
        """Whether pip finds here what the file asks for; it is installed by the tests of a clean
        checkout, as this process cannot."""
        assert words[0] == "-r"
        asked = (ROOT / words[1]).read_text(encoding="utf-8")
        assert "-e ." in asked.splitlines()
        wanted = self.told.folder / "wanted.txt"
        wanted.write_text(asked.replace("\n-e .", ""), encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--no-deps"]
        done = subprocess.run([*pip, "-r", str(wanted)], capture_output=True, text=True)
        self.told.printed += done.stdout + done.stderr
        return done.returncode

    def run_yaml(self, content: str) -> None:
        shown = yaml.safe_load(content)
        base = yaml.safe_load(Path("configs/train_config.yaml").read_text(encoding="utf-8"))
        base["training"] |= {"output_dir": f"outputs/shown-{len(self.told.configs)}"}
        for section, keys in shown.items():
            base[section] |= keys
        self.told.configs.append(load_config(base))  # as it is shown
        small = load_config(base, [*self.quick["train"], *self.smaller])
        self.call(lambda: Trainer(small).train() and 0)

    def run_json(self, content: str) -> None:
        rows = yaml.safe_load(content)
        Path("data/metadata.json").write_text(json.dumps(rows), encoding="utf-8")

    def run_python(self, content: str) -> None:
        names: dict[str, object] = {"__name__": "__main__"}
        self.call(lambda: exec(compile(content, "shown", "exec"), names))
        self.told.names |= names

    def call(self, do: object) -> int | None:
        out = io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                return do()  # type: ignore[operator, no-any-return]
        except SystemExit as stop:
            return stop.code  # type: ignore[return-value]
        finally:
            self.told.printed += out.getvalue()


def put_back() -> None:
    """The checkpoint that documents call 1000: a run that was at fewer steps set it aside."""
    place = Path("outputs/checkpoint-1000")
    for aside in Path("outputs").glob("set-aside*/checkpoint-1000"):
        if not place.exists():
            aside.rename(place)


def split(line: str) -> Iterator[list[str]]:
    """The commands of a line of a shell, each as a list of words."""
    words: list[str] = []
    for word in [*shlex.split(line, comments=True), "&&"]:
        if word not in ("&&", ";"):
            words.append(word)
        elif words:
            yield words
            words = []


def script(words: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        runpy.run_path(words[0], run_name="__main__")


def as_the_hub(recorded: Recorded, patch: pytest.MonkeyPatch, cache: Path) -> None:
    """The Hub that documents mean, where one is logged in, with nothing downloaded yet."""
    point_client_at(recorded.address, cache, patch)
    patch.setenv("HF_TOKEN", TOKEN)
