"""Imports go one way: rooms lie above each other, and no module needs itself."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "limner"
GROUND = "errors version choices messages redaction console threads device memory"
ROOMS = (
    tuple(GROUND.split()),
    ("files",),
    ("config",),
    ("metrics",),
    ("text",),
    ("data",),
    ("pretrained",),
    ("models",),
    ("diffusion",),
    ("distributed",),
    ("checkpoint",),
    ("inference",),
    ("training",),
    ("evaluation",),
    ("reports",),
    ("apps",),
    ("commands",),
    ("cli", "__main__"),
)
"""From the ground up: a module imports from its own room and from those above it in this list."""
LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names}


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in SOURCE.rglob("*.py")}


def imported(module: str) -> set[str]:
    """Modules of Limner that a module imports: at its top, in functions, and for types."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports say the whole name"
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                found.add(below if below in MODULES else str(node.module))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in MODULES and name != module}


GRAPH = {module: imported(module) for module in MODULES}


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_module_has_a_room() -> None:
    assert {room(m) for m in MODULES if m != "limner"} == set(LEVEL)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"limner"}))
def test_no_import_goes_up(module: str) -> None:
    level = LEVEL[room(module)]
    up = {m for m in GRAPH[module] if m == "limner" or LEVEL[room(m)] > level}
    assert not up, f"{module} is below {', '.join(sorted(up))}"


def test_there_is_no_circle() -> None:
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for name in GRAPH[module]:
                visit(name, (*way, module))
            done.add(module)

    for module in MODULES:
        if module != "limner":  # the public names, which import from everywhere
            visit(module, ())
