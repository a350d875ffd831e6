"""One readable file that holds a class and everything of Limner that it needs, and runs without it.

An exported model carries its code with it. That code is taken from Limner's own modules at the
moment of the export, definition by definition, so there is no second copy that could differ.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from limner.version import __version__

WIDTH = 100  # of lines, characters

HEADER = f"""# Copyright the Limner contributors
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except
# in compliance with the License. You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software distributed under the License
# is distributed on an "AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express
# or implied. See the License for the specific language governing permissions and limitations under
# the License.
#
# Written by `limner export` (Limner {__version__}): Limner's own definitions, as they are in the
# modules that are named above them. What is not needed here is left out.
"""


@dataclass(frozen=True, order=True)
class Import:
    """`from module import name as alias`, or `import module` with an empty name."""

    module: str
    name: str
    alias: str | None


@dataclass
class Module:
    """A module of Limner as text: what it defines, and what it imports."""

    name: str
    text: str
    imports: dict[str, Import] = field(default_factory=dict)
    definitions: dict[str, ast.stmt] = field(default_factory=dict)

    @classmethod
    def read(cls, name: str) -> Module:
        path = files("limner").joinpath(*name.split(".")[1:-1], name.rpartition(".")[2] + ".py")
        module = cls(name, path.read_text(encoding="utf-8"))
        for statement in module.tree.body:
            if isinstance(statement, ast.Import):
                for found in statement.names:
                    module.imports[found.asname or found.name] = Import(
                        found.name, "", found.asname
                    )
            elif isinstance(statement, ast.ImportFrom):
                assert statement.module
                for found in statement.names:
                    module.imports[found.asname or found.name] = Import(
                        statement.module, found.name, found.asname
                    )
            else:
                for defined in _names_of(statement):
                    module.definitions[defined] = statement
        return module

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    def source(self, statement: ast.stmt) -> str:
        """A definition with the comment above it and the string below it that belong to it."""
        last = statement.end_lineno or statement.lineno
        place = self.tree.body.index(statement) + 1
        following = self.tree.body[place] if place < len(self.tree.body) else None
        if isinstance(statement, ast.Assign | ast.AnnAssign) and _is_string(following):
            assert following
            assert following.end_lineno
            last = following.end_lineno
        return "\n".join(self.lines[self.first_line(statement) : last])

    def first_line(self, statement: ast.stmt) -> int:
        """Counted from 0."""
        decorators = getattr(statement, "decorator_list", [])
        first = min(node.lineno for node in (statement, *decorators)) - 1
        while first and self.lines[first - 1].startswith("#"):
            first -= 1
        return first

    def blank_lines(self, before: ast.stmt | None, statement: ast.stmt) -> int:
        """How many stand between two definitions."""
        if any(isinstance(s, ast.ClassDef | ast.FunctionDef) for s in (before, statement)):
            return 2
        return 1 if before is None or not self.lines[self.first_line(statement) - 1] else 0


def standalone(module: str, name: str) -> str:
    """Source text of one file that defines `name` of `module` and all that it needs of Limner.

    Args:
        module: such as "limner.models.dit".

    Raises:
        ValueError: two needed modules define one name, or a definition cannot be moved (it imports
            from Limner inside a function, or under another name).
    """
    found = _Needed()
    found.follow(module, name)
    parts = [HEADER, f'"""{ast.get_docstring(found.modules[module].tree)}"""', ""]
    parts += ["from __future__ import annotations", "", *_import_lines(found.imports)]
    for path in found.in_order(module):
        read = found.modules[path]
        needed = [s for s in read.tree.body if s in found.statements[path]]
        if not needed:
            continue
        place = Path(*path.split(".")).with_suffix(".py").as_posix()
        title = f"# ---- {place} "
        parts += ["", title + "-" * (WIDTH - len(title))]
        if path != module:
            parts += [f"# {line}" for line in (ast.get_docstring(read.tree) or "").split("\n")[:1]]
        before: ast.stmt | None = None
        for statement in needed:
            parts += [""] * read.blank_lines(before, statement)
            parts.append(read.source(statement))
            before = statement
        parts.append("")
    text = "\n".join(parts)
    compile(text, f"{name}.py", "exec")
    return text


class _Needed:
    """What a definition needs, followed through Limner's modules."""

    def __init__(self) -> None:
        self.modules: dict[str, Module] = {}
        self.statements: dict[str, list[ast.stmt]] = {}
        self.needs: dict[str, dict[str, None]] = {}
        """Module -> those that it needs."""
        self.imports: set[Import] = set()
        self.home: dict[str, str] = {}
        """Name -> the module that defines it."""

    def follow(self, path: str, name: str) -> None:
        if path not in self.modules:
            self.modules[path], self.statements[path] = Module.read(path), []
        module = self.modules[path]
        if name in module.imports:
            wanted = module.imports[name]
            if wanted.module.partition(".")[0] != "limner":
                self.imports.add(wanted)
            elif wanted.alias or not wanted.name:
                raise ValueError(f"{path}: {name} is imported under another name")
            else:
                self.needs.setdefault(path, {})[wanted.module] = None
                self.follow(wanted.module, wanted.name)
            return
        statement = module.definitions.get(name)
        if statement is None or statement in self.statements[path]:
            return
        for defined in _names_of(statement):
            if self.home.setdefault(defined, path) != path:
                raise ValueError(f"{defined} is defined in {self.home[defined]} and in {path}")
        self.statements[path].append(statement)
        for node in ast.walk(statement):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("limner"):
                raise ValueError(f"{path}: {name} imports from {node.module} inside of it")
            if isinstance(node, ast.Name):
                self.follow(path, node.id)

    def in_order(self, path: str) -> Iterator[str]:
        """The modules under this one, each after those that it needs."""
        found: dict[str, None] = {}

        def visit(path: str) -> None:
            for needed in self.needs.get(path, ()):
                if needed not in found:
                    visit(needed)
            found[path] = None

        visit(path)
        yield from found


def _names_of(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement at the top of a module defines."""
    if isinstance(statement, ast.ClassDef | ast.FunctionDef):
        yield statement.name
    elif isinstance(statement, ast.Assign):
        for target in statement.targets:
            yield from (node.id for node in ast.walk(target) if isinstance(node, ast.Name))
    elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        yield statement.target.id


def _is_string(statement: ast.stmt | None) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _import_lines(imports: set[Import]) -> list[str]:
    """In the order and shape that ruff gives them: the standard library, then the rest."""
    groups: list[list[str]] = [[], []]
    plain = sorted(i for i in imports if not i.name)
    named = {i.module for i in imports if i.name}
    for found in plain:
        line = f"import {found.module}" + (f" as {found.alias}" if found.alias else "")
        groups[found.module.partition(".")[0] not in sys.stdlib_module_names].append(line)
    for module in sorted(named, key=str.lower):
        names = [
            f"{i.name} as {i.alias}" if i.alias else i.name
            for i in imports
            if i.module == module and i.name
        ]
        # Constants, then classes, then functions.
        names.sort(key=lambda n: (not n.isupper(), not n[0].isupper(), n))
        line = f"from {module} import {', '.join(names)}"
        if len(line) > WIDTH:
            line = f"from {module} import (\n" + "".join(f"    {n},\n" for n in names) + ")"
        groups[module.partition(".")[0] not in sys.stdlib_module_names].append(line)
    return [*groups[0], *([""] if groups[0] and groups[1] else []), *groups[1]]
