"""The reference in docs/reference/ is what the code says today, with nothing left out."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import limner
from limner.cli import build_parser
from limner.config import known_keys

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    before = list(sys.path)
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def test_the_committed_pages_are_what_the_code_says(generate: ModuleType) -> None:
    written = generate.pages()
    assert len(written) == 6
    for path, text in written.items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.name} is not what the code says: run python docs/generate.py"
        )
    assert set((ROOT / "docs" / "reference").iterdir()) == set(written)


@pytest.mark.parametrize("suffix", ["", ".zh-CN"])
def test_every_key_command_and_public_name_is_there(suffix: str) -> None:
    pages = {
        name: (ROOT / "docs" / "reference" / f"{name}{suffix}.md").read_text(encoding="utf-8")
        for name in ("config", "cli", "api")
    }
    assert re.findall(r"^\| `(\w+\.\w+)` \|", pages["config"], re.MULTILINE) == known_keys()
    for line in pages["config"].splitlines():
        if line.startswith("| `"):
            *_, meaning, end = re.split(r"(?<!\\)\|", line)
            assert end == ""
            assert len(meaning.strip()) > 2, f"no meaning: {line}"
    (commands,) = [a.choices for a in build_parser()._actions if a.choices is not None]
    assert re.findall(r"^## limner (\S+)$", pages["cli"], re.MULTILINE) == list(commands)
    for name in limner.__all__:
        assert f"### {name}\n" in pages["api"]


def test_chinese_belongs_to_sentences_that_are_there(generate: ModuleType) -> None:
    """A translation of a sentence that was changed is not used, and python docs/generate.py takes
    it out."""
    pieces = sys.modules["markdown_pieces"]
    generate.pages()
    known = pieces.translations()
    assert len(known) > 100
    assert set(known) <= pieces.SAID
    assert all(re.search(r"[\u4e00-\u9fff]", text) for text in known.values())
    assert pieces.say("Width of the transformer.", "zh") == known["Width of the transformer."]
    assert pieces.say("A sentence that was changed.", "zh") == "A sentence that was changed."


def test_code_in_a_translation_is_the_code_of_the_sentence(generate: ModuleType) -> None:
    for english, chinese in sys.modules["markdown_pieces"].translations().items():
        for code in re.findall(r"`[^`]+`", english):
            assert code in chinese, (english, chinese)
        for number in re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", english):
            assert number in chinese, (english, chinese)
