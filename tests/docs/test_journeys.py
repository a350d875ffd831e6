"""The journeys in CONTRIBUTING.md are those that the code takes."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `([\w/]+\.py)` \| `([\w.]+)` \| (.*?) ?\|$", re.M)
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
JOURNEYS = TEXT.partition("## Two journeys")[2].partition("## Where does")[0]
STEPS = ROW.findall(JOURNEYS)


def function(path: Path, name: str) -> ast.FunctionDef:
    """A function, or a method by `Class.method`."""
    found: ast.AST = ast.parse(path.read_text("utf-8"))
    for part in name.split("."):
        (found,) = [
            node
            for node in ast.iter_child_nodes(found)
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == part
        ]
    assert isinstance(found, ast.FunctionDef)
    return found


def called(body: ast.AST) -> list[str]:
    """What a function calls, in the order of its text; `SOLVERS[name](...)` calls SOLVERS."""
    calls = [node for node in ast.walk(body) if isinstance(node, ast.Call)]
    names = []
    for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset)):
        what = call.func.value if isinstance(call.func, ast.Subscript) else call.func
        names.append(what.attr if isinstance(what, ast.Attribute) else getattr(what, "id", ""))
    return names


def test_there_are_two_of_at_most_eight_files() -> None:
    image, prompt = (ROW.findall(part) for part in JOURNEYS.split("A prompt, from words")[:2])
    for journey in (image, prompt):
        assert 5 < len({file for file, _, _ in journey}) <= 8


BY_ANOTHER_NAME = {
    "TrainStep.__call__": "the loop",
    "TextToImage.forward": "model",
    "ModernDiT.forward": "denoiser",
    "dpmsolver_pp_2m": "SOLVERS",
}
"""How a step is called where it is neither by the name of its function nor of its class."""


def test_each_step_is_called_by_one_before_it() -> None:
    for journey in JOURNEYS.split("A prompt, from words")[:2]:
        (_, first, calls), *others = ROW.findall(journey)
        known = {*re.findall(r"`(\w+)`", calls), "the loop"}
        for _, name, calls in others:
            owner, _, own = name.rpartition(".")
            assert known & {own, owner, BY_ANOTHER_NAME.get(name)}, f"who calls {name}?"
            known |= set(re.findall(r"`(\w+)`", calls))
        assert first


@pytest.mark.parametrize(("file", "name", "calls"), STEPS, ids=[f"{f}:{n}" for f, n, _ in STEPS])
def test_each_step_calls_the_next(file: str, name: str, calls: str) -> None:
    found = called(function(ROOT / "src" / "limner" / file, name))
    for wanted in re.findall(r"`(\w+)`", calls):
        assert wanted in found, f"{name} calls {found}"


def test_files_of_the_map_of_changes_exist() -> None:
    table = TEXT.partition("## Where does my change go?")[2].partition("## Documentation")[0]
    named = re.findall(r"`([\w/]+(?:\.py|/))`", table)
    assert len(named) > 15
    for file in named:
        assert (ROOT / "src" / "limner" / file).exists(), file
