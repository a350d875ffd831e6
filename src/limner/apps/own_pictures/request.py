"""What `limner train` was asked for, in words and as settings."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limner.data.image_sizes import BUILT_IN
from limner.errors import LimnerError
from limner.files.small_files import parse_yaml

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SHARDS = re.compile(r"://|[*?{\[]")


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        data: folder, file, built-in set, or Hub id; None: a configuration says.
        minutes, size, origin, output: the flags; None: not given.
        overrides: section.key=value
    """

    data: str | None
    minutes: float | None
    size: int | None
    origin: str | None
    output: str | None
    overrides: Sequence[str]

    @property
    def folder(self) -> Path:
        """Of the run."""
        if self.output is None and (said := self.said("training.output_dir")):
            return Path(said)
        data = self.data or ""
        name = data if "://" in data else Path(data).expanduser().resolve().name
        name = re.sub(r"[^\w.-]+", "-", Path(name).stem).strip("-.") or "pictures"
        return Path(self.output or f"outputs/{name}")

    def said(self, key: str) -> str | None:
        """The value of a key among the overrides, the last of several, as a text."""
        values = [word.partition("=")[2] for word in self.overrides if word.startswith(f"{key}=")]
        value = parse_yaml(values[-1], key) if values else None
        return None if value is None else str(value)

    @property
    def command(self) -> str:
        """As it may be typed again."""
        flags = {"size": self.size, "from": self.origin, "output": self.output}
        words = ["limner train", shell_word(self.data or "")]
        words += [f"--{key} {shell_word(str(v))}" for key, v in flags.items() if v is not None]
        return " ".join([*words, *map(shell_word, self.overrides)])

    def settings(self) -> list[str]:
        """As overrides; the user's own keys come last, and win."""
        given: dict[str, Any] = {
            "training.output_dir": self.output,
            "training.init_from": self.origin,
            "data.image_size": self.size,
            "training.max_minutes": self.minutes,
        }
        if self.data is not None:
            key = "dataset_path" if is_a_place(self.data) else "dataset_name"
            given = {f"data.{key}": self.data} | given
        said = {k: json.dumps(v, ensure_ascii=False) for k, v in given.items() if v is not None}
        return [f"{key}={value}" for key, value in said.items()] + list(self.overrides)

    def as_kept(self) -> dict[str, Any]:
        """What makes it the same request; its minutes may grow."""
        return {
            "data": as_kept(self.data or ""),
            "size": self.size,
            "from": self.origin,
            "minutes": self.minutes,
            "settings": sorted(self.overrides),
        }


def command_of(kept: dict[str, Any] | None, folder: Path) -> str | None:
    """The command of which `Request.as_kept` kept these, with its run folder; None: they do not
    say."""
    if kept is None or not isinstance(kept.get("data"), str):
        return None
    settings = [str(word) for word in kept.get("settings") or []]
    origin = kept.get("from")
    earlier = Request(kept["data"], None, kept.get("size"), origin, None, settings)
    if earlier.folder != folder:
        earlier = replace(earlier, output=folder.as_posix())
    return earlier.command


def as_kept(data: str) -> str:
    """The same for all spellings of a place: from here if it is below, else whole."""
    if not Path(data).expanduser().exists():
        return data
    return Path(os.path.realpath(Path(data).expanduser())).as_posix()


def is_a_place(data: str) -> bool:
    """Whether the words name a folder, a file, or shards, and not a set.

    Raises:
        LimnerError: they name nothing.
    """
    if Path(data).expanduser().exists() or _SHARDS.search(data):
        return True
    beside = Path(data).expanduser().parent  # of a mistyped name in a folder that is there
    hub = _HUB_ID.fullmatch(data) and not beside.is_dir()
    if data.lower() in BUILT_IN or hub:
        return False
    raise LimnerError(
        f"there is no folder or file {Path(data).absolute()}; limner train FOLDER expects your "
        "pictures and captions (docs/data.md), limner train --config FILE a YAML file"
    )


def shell_word(word: str) -> str:
    """As it may be typed, in a POSIX shell and on Windows."""
    return (
        word if re.fullmatch(r"[\w@%+=:,./\\~-]+", word) else json.dumps(word, ensure_ascii=False)
    )
