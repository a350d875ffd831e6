"""Docstrings name what there is: parameters under `Args:`, classes, functions, modules."""

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "limner"
TREES = {path: ast.parse(path.read_text("utf-8")) for path in sorted(SOURCE.rglob("*.py"))}
OUTSIDE = """
    AutoencoderDC AutoencoderTiny DistributedDataParallel FlowMatchEulerDiscreteScheduler ImageNet
    JavaScript JiT KiB LoRA MeanFlow MiB ModelSpec NaN NovelAI OpenAI OpenMP PaLM PixArt PyPI
    PyTorch ReLU ReLU6 RePaint Replace TensorFloat TensorFlow Thumbs UniC UniPC ViT WebAssembly
    WebDataset WebP dataclasses ema_rampup_ratio lastResort mu_s nouns sigma_s yes
"""
"""What docstrings name and the code does not: of papers, other libraries, file formats."""

FILES = {"html", "json", "safetensors", "webp"}
"""Endings of files that are called as a module or a folder is."""

SPAN = re.compile(r"`([A-Za-z_]\w*(?:\.\w+)*)(?:\(.*?\))?`")
CAMEL = re.compile(r"\b[A-Z][a-z0-9]+[A-Z]\w*\b")
ARGUMENT = re.compile(r"^    (\w+(?:, \w+)*): ", re.M)


def docstrings(tree: ast.AST) -> Iterator[tuple[ast.AST, ast.Constant]]:
    """Every docstring, those of attributes too, with the node in whose body it stands."""
    for node in ast.walk(tree):
        body = getattr(node, "body", ())
        for statement in body if isinstance(body, list) else ():
            match statement:
                case ast.Expr(value=ast.Constant(value=str()) as text):
                    yield node, text


DOCSTRINGS = [
    (f"{path.relative_to(SOURCE)}:{text.lineno}", node, text.value)
    for path, tree in TREES.items()
    for node, text in docstrings(tree)
]


def names_in(tree: ast.AST) -> Iterator[str]:
    """Every identifier of a piece of code, whether it is defined or only used there."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname"):
            if isinstance(name := getattr(node, field, None), str):
                yield from name.split(".")
        if isinstance(node, ast.ImportFrom):
            yield from str(node.module).split(".")


def places() -> tuple[set[str], set[str], dict[str, set[str]]]:
    """All identifiers, all words of strings that are no docstrings, and what each folder, module,
    and class has in it by its name."""
    names, words, inside = set(OUTSIDE.split()), set(), defaultdict(set)
    for path, tree in TREES.items():
        here = set(names_in(tree))
        names |= here | {path.stem, *path.relative_to(SOURCE.parent).parts}
        inside[path.stem] |= here
        folder = path.parent
        inside[folder.name] |= {path.stem} | (here if path.name == "__init__.py" else set())
        inside[folder.parent.name].add(folder.name)
        texts = {id(text) for _, text in docstrings(tree)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                inside[node.name] |= set(names_in(node))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                words |= set(() if id(node) in texts else re.findall(r"\w+", node.value))
    for node in TREES[SOURCE / "config" / "schema.py"].body:
        if isinstance(node, ast.ClassDef):  # its fields are sections, called as folders may be
            for section in (field for field in node.body if isinstance(field, ast.AnnAssign)):
                inside[section.target.id] |= inside[section.annotation.id]
    return names, words, inside


NAMES, WORDS, INSIDE = places()


def unknown(text: str) -> set[str]:
    """Names in a docstring that the code does not have. Those with a capital must be identifiers;
    others may be words of a string, such as the values of a setting."""
    found = {word for word in CAMEL.findall(text) if word not in NAMES}
    for span in SPAN.findall(text):
        first, *rest = span.split(".")
        for part in (first, *rest):
            if part not in (NAMES if part[0].isupper() else NAMES | WORDS):
                found.add(span)
        if rest and first in INSIDE and rest[0] not in INSIDE[first] | FILES:
            found.add(span)
    return found


def test_every_name_is_one_of_the_code() -> None:
    stale = {where: names for where, _, text in DOCSTRINGS if (names := unknown(text))}
    assert not stale


def test_no_exception_is_left_over() -> None:
    everything = " ".join(text for _, _, text in DOCSTRINGS)
    assert {name for name in OUTSIDE.split() if not re.search(rf"\b{name}\b", everything)} == set()


def parameters(node: ast.AST) -> set[str]:
    """Of a function; of a class those of its `__init__`, and its fields."""
    if isinstance(node, ast.ClassDef):
        fields = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign)}
        made = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        return fields.union(*map(parameters, made))
    return {n.arg for n in ast.walk(node.args) if isinstance(n, ast.arg)}


def test_every_documented_argument_is_a_parameter() -> None:
    wrong, seen = {}, 0
    for where, node, text in DOCSTRINGS:
        _, heading, rest = inspect.cleandoc(text).partition("\nArgs:\n")
        if not heading or isinstance(node, ast.Module):
            continue
        section = re.split(r"^\S", rest, maxsplit=1, flags=re.M)[0]
        documented = {name for names in ARGUMENT.findall(section) for name in names.split(", ")}
        seen += len(documented)
        if documented - parameters(node):
            wrong[where] = documented - parameters(node)
    assert seen > 300
    assert not wrong
