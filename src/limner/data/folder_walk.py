"""Walk the subfolders of a data folder, following links and skipping what is not data.

Real folders come first, in the order of their names; then those that links lead to, each real
folder once, so that loops end. What is passed over is remembered, to be said once.
"""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from limner.files.output_folders import kind_of_output
from limner.files.system_names import SYSTEM_FOLDERS, is_system_name
from limner.messages import shorten_name


def composed(name: str) -> str:
    """A name as it is compared: macOS may keep `é` as two characters, other systems as one."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def by_stem(names: Iterable[str], ending: str) -> dict[str, str]:
    """Names that end so, in capitals or not, by what stands before, as it is compared. Of two that
    are alike there (cat.TXT and cat.txt) the last."""
    ends = (name for name in names if name.lower().endswith(ending))
    return {composed(name[: -len(ending)]): name for name in ends}


CAPTION_ENDINGS = (".txt", ".caption")
"""Of the file beside a picture that holds its caption; where there are both, the first is read.
kohya's sd-scripts write .caption."""


def caption_files(names: Iterable[str]) -> dict[str, str]:
    """The caption file of each stem, which is as it is compared."""
    found: dict[str, str] = {}
    for ending in reversed(CAPTION_ENDINGS):
        found |= by_stem(names, ending)
    return found


class PassedOver(list[tuple[str, str]]):
    """What a walk did not look into: (why, path) of each."""

    def __str__(self) -> str:
        """For people, the first three of each kind; empty where there is nothing to say."""
        by_reason: dict[str, list[str]] = {}
        for why, path in self:
            by_reason.setdefault(why, []).append(path)
        parts = []
        for why, paths in by_reason.items():
            shown = ", ".join(map(shorten_name, paths[:3])) + (", ..." if len(paths) > 3 else "")
            parts.append(f"{shown} ({why})")
        return f"Skipped: {'; '.join(parts)}." if parts else ""


class FolderWalk:
    """Iterates over (folder, its path within the root, names of its files, sorted).

    Args:
        root: looked at whatever it is called and whatever it is.

    Attributes:
        passed_over: filled while it is iterated over.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.passed_over = PassedOver()

    def __iter__(self) -> Iterator[tuple[Path, str, list[str]]]:
        real = os.path.realpath(self.root)
        self.seen = {real}
        self.above = {str(parent) for parent in Path(real).parents}
        self.links: list[str] = []
        yield from self._visit("", real)
        while self.links:
            links, self.links = sorted(self.links), []
            for within in links:
                target = os.path.realpath(self.root / within)
                if target in self.above:
                    self.passed_over.append(
                        ("links that point to a parent folder of the data", within)
                    )
                elif target not in self.seen:
                    self.seen.add(target)
                    yield from self._visit(within, target)

    def _visit(self, within: str, real: str) -> Iterator[tuple[Path, str, list[str]]]:
        folder = self.root / within if within else self.root
        files, folders, links = list[str](), list[str](), set[str]()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not _is_folder(entry):
                        files.append(entry.name)
                    elif entry.is_symlink():
                        links.add(entry.name)
                    else:
                        folders.append(entry.name)
        except OSError as error:
            self.passed_over.append((f"cannot be read: {error.strerror or error}", within or "."))
            return
        if within and (kind := kind_of_output(folder, {*files, *folders, *links})):
            self.passed_over.append((f"{kind} written by Limner", within))
            return
        yield folder, within, sorted(name for name in files if not is_system_name(name))
        for name in sorted([*folders, *links]):
            path = posixpath.join(within, name)
            if is_system_name(name):
                if name.lower() in SYSTEM_FOLDERS or name.lower().startswith(".trash"):
                    self.passed_over.append(("of the system", path))
            elif name in links:
                self.links.append(path)
            else:
                below = os.path.join(real, name)
                if os.name == "nt":  # a junction does not say that it is a link
                    below = os.path.realpath(below)
                if below not in self.seen:
                    self.seen.add(below)
                    yield from self._visit(path, below)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False
