"""Restrict the paths that a data set may refer to, in any format.

1. A path is relative to the data's own folder and stays in it. An absolute one that leads into it
   counts as relative. Web addresses are refused.
2. What leads out of it (`..`, an absolute path, a drive) is refused, unless it leads into a folder
   that `data.allowed_paths` names.
3. Links are followed in a folder that the person named, as many keep pictures on another disk. In
   tables of the package datasets, which come from others, the file itself has to lie in the
   folder, or in the cache into which it was downloaded.
4. Only regular files are opened (no device, no pipe), of at most so many bytes: see
   `limner.data.regular_files`.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from pathlib import Path

from limner.data import images
from limner.data.folder_walk import composed
from limner.messages import shorten, shorten_name

MAX_PATH = 4096
"""Characters; what is longer is no path, and was perhaps meant to be the picture itself."""


class ImagePaths:
    """The paths that one data set names. Each directory is read once, so that a million are cheap.

    Args:
        root: the data's own folder.
        allowed: folders outside of it.
        links: whether links may lead out of it.
    """

    def __init__(self, root: Path, allowed: Sequence[Path] = (), links: bool = True) -> None:
        self.root, self.links = root, links
        self.allowed = [os.path.abspath(path) for path in allowed]
        self.real = [os.path.realpath(path) for path in (str(root), *self.allowed)]
        self.folders: dict[str, _Names | None] = {}
        self.real_folders: dict[str, str] = {}

    def find(self, path: object) -> tuple[str, str | None]:
        """(the row's key, None); or what to call the row, and why its path is refused.

        The key is the path within the root with forward slashes, or an absolute one that is
        allowed, as the file is called on the disk. Whether the file is there is known from its
        directory; it is not opened.
        """
        key, reason = self.key(path)
        if reason is None and posixpath.splitext(key)[1].lower() not in images.EXTENSIONS:
            known = " ".join(sorted(images.EXTENSIONS))
            reason = f"not a picture extension (supported: {known})"
        return (key, reason) if reason else self.existing(key)

    def key(self, path: object) -> tuple[str, str | None]:
        """The same, by the looks of the path alone."""
        if not isinstance(path, str) or not path.strip():
            return "(no path)", f"the path is {shorten(path)}, not the name of a picture file"
        if len(path) > MAX_PATH:
            return shorten_name(path), (
                f"the path is {shorten(path)}, longer than any path; is it the picture itself, in "
                "base64? Write pictures to files (or to Parquet, as bytes), and use their paths"
            )
        if "\0" in path:
            return shorten_name(path), "the path contains a NUL character; correct it"
        try:
            path.encode("utf-8")
        except UnicodeEncodeError:
            return ascii(path), "the path is not valid Unicode (UTF-8)"
        if "://" in path:
            return path, "this is a URL; download the picture, and use its path"
        slashed = path.replace("\\", "/")
        key = posixpath.normpath(slashed)
        leaves = slashed.startswith("/") or slashed[1:2] == ":" or key.split("/")[0] == ".."
        if not leaves:
            return key, None
        if inside := self._inside(path if os.path.isabs(path) else slashed):
            return inside, None
        return path, (
            f"the path leads out of the folder {self.root}; use one inside it, or add the folder "
            "it leads to to data.allowed_paths"
        )

    def _inside(self, path: str) -> str | None:
        """The key of a path that is absolute or leads upwards, if it ends where it may."""
        if path[1:2] == ":" and not os.path.isabs(path):
            return None  # a drive of Windows
        target = os.path.normpath(os.path.join(self.root, path))
        own = (os.path.abspath(self.root), self.real[0])
        for folder in own:
            if _is_below(target, folder):
                return Path(os.path.relpath(target, folder)).as_posix()
        if any(_is_below(target, folder) for folder in (*self.allowed, *self.real[1:])):
            return Path(target).as_posix()
        return None

    def existing(self, key: str) -> tuple[str, str | None]:
        """(the key as the file is called on the disk, None), or (the key, why there is none)."""
        directory, name = posixpath.split(key)
        there, names = self._folder(directory)
        if names is None:
            return key, f"the folder {shorten(directory)} is not there"
        if name not in names.files:
            if name in names.others:
                return key, "it is not a regular file, but a device, a pipe, or a broken link"
            if (called := names.composed().get(composed(name))) is None:
                return key, "the picture file is not there (names are case-sensitive)"
            name = called
        found = key if there == directory and key.endswith(name) else posixpath.join(there, name)
        if not self.links and (reason := self._linked_out(there, name)):
            return key, reason
        return found, None

    def _linked_out(self, directory: str, name: str) -> str | None:
        """Why the file itself is not where it may be."""
        if directory not in self.real_folders:
            self.real_folders[directory] = os.path.realpath(self.root / directory)
        real = os.path.join(self.real_folders[directory], name)
        if os.path.islink(real):
            real = os.path.realpath(real)
        if any(_is_below(real, folder) for folder in self.real):
            return None
        return (
            f"it is a link that leads out of the folder {self.root}; if that is intended, add the "
            "folder it leads to to data.allowed_paths"
        )

    def _folder(self, directory: str) -> tuple[str, _Names | None]:
        """(a directory as it is called on the disk, what is in it); None if it is not there."""
        if directory not in self.folders:
            self.folders[directory] = _names(self.root, directory)
        names = self.folders[directory]
        if names is not None or directory in ("", "/") or directory.isascii():
            return directory, names
        above, name = posixpath.split(directory)
        there, around = self._folder(above)
        called = around and around.composed().get(composed(name))
        if not called:
            return directory, None
        actual = posixpath.join(there, called)
        return self._folder(actual) if actual != directory else (directory, None)


class _Names:
    """What is in a directory."""

    def __init__(self) -> None:
        self.files, self.folders, self.others = set[str](), set[str](), set[str]()
        self._composed: dict[str, str] | None = None

    def of(self, entry: os.DirEntry[str]) -> set[str]:
        """Those of an entry's kind; links count as what they lead to."""
        try:
            if entry.is_file():
                return self.files
            return self.folders if entry.is_dir() else self.others
        except OSError:  # links in a circle
            return self.others

    def composed(self) -> dict[str, str]:
        """Names of files and folders that are not ASCII, by their composed form."""
        if self._composed is None:
            names = sorted(name for name in self.files | self.folders if not name.isascii())
            self._composed = {composed(name): name for name in names}
        return self._composed


def _names(root: Path, directory: str) -> _Names | None:
    names = _Names()
    try:
        with os.scandir(root / directory) as entries:
            for entry in entries:
                names.of(entry).add(entry.name)
    except (OSError, ValueError):
        return None
    return names


def _is_below(path: str, folder: str) -> bool:
    try:
        return os.path.commonpath([path, folder]) == folder and path != folder
    except ValueError:  # on another drive
        return False
