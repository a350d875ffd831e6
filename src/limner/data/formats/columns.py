"""Detect the picture and caption columns (or keys) of tables."""

from __future__ import annotations

import ast
import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from limner.config import Config
from limner.data.dataset import HELD_OUT
from limner.data.formats.entries import Entry
from limner.errors import LimnerError
from limner.messages import shorten

IMAGE = (
    *("image", "file_name", "filename", "image_path", "img_path", "filepath", "file_path", "path"),
    *("img", "image_name", "image_file", "file", "picture", "photo"),
)
CAPTIONS = (
    *("text", "caption", "captions", "texts", "prompt", "prompts", "description", "descriptions"),
    *("sentence", "sentences", "raw", "comment"),
)
"""What these columns are called, capitals aside. The first of them that is there is used, and the
description says which that is."""

_TRUTH = {"true": True, "1": True, "false": False, "0": False, "": None, "none": None, "nan": None}
_LONGEST_LIST = 1_000_000  # characters of a cell that is looked into for a list


@dataclass(frozen=True)
class Columns:
    """The columns that were asked for; None: those that are there, by their known names."""

    image: str | None = None
    captions: tuple[str, ...] | None = None

    @classmethod
    def of(cls, config: Config) -> Columns:
        captions = config.data.caption_column
        return cls(
            config.data.image_column, (captions,) if isinstance(captions, str) else captions or None
        )

    def choose(self, names: Mapping[str, int] | Iterable[str], image: str = "image") -> Chosen:
        """Which of the names are used. Where names are counted, as in rows that differ, the known
        name counts that most rows have. `image`: what is missed where there is none."""
        counts = names if isinstance(names, Mapping) else dict.fromkeys(names, 1)
        captions, others = self.captions, tuple[str, ...]()
        if captions is None:
            first, *rest = _known(counts, CAPTIONS) or ["text"]
            captions, others = (first,), tuple(rest)
        return Chosen(self.image or _commonest(counts, IMAGE) or image, captions, others)


@dataclass(frozen=True)
class Chosen:
    """The columns that are used."""

    image: str
    captions: tuple[str, ...]
    others: tuple[str, ...] = ()
    """Columns that are called like captions as well, where none was asked for."""

    def __str__(self) -> str:
        return f"columns {', '.join((self.image, *self.captions))}"

    def missing(self, names: Iterable[Any]) -> str | None:
        """What column is not there, which one might be meant, and what there is."""
        found = [str(name) for name in names]
        asked = ((self.image, IMAGE), *((name, CAPTIONS) for name in self.captions))
        for key, known in asked:
            if key in found:
                continue
            setting = "data.image_column" if known is IMAGE else "data.caption_column"
            alike = difflib.get_close_matches(key, found, n=1)
            if key in known:
                also = [name for name in found if name.strip().lower() in known] or alike
                fix = f"Rename {shorten(also[0], 40)} to '{key}'" if also else f"Add '{key}'"
                fix += f", or set {setting} to another."
            else:  # it was asked for by that name
                fix = f"Correct {setting}" + (
                    f"; did you mean {shorten(alike[0], 40)}?" if alike else "."
                )
            listed = ", ".join(shorten(name, 40) for name in found[:20]) or "nothing"
            return f"there is no '{key}'; found {listed}. {fix}"
        return None

    def require(self, names: Iterable[Any], where: str) -> None:
        """Raises LimnerError if a column is not there."""
        if fault := self.missing(names):
            raise LimnerError(f"{where}: {fault}")

    def refuse_doubled(self, names: Iterable[Any], where: str) -> None:
        """Raises LimnerError where a column that is used stands twice: only one would be read."""
        listed = list(names)
        for name in (self.image, *self.captions, HELD_OUT):
            if (count := listed.count(name)) > 1:
                raise LimnerError(
                    f"{where}: {count} columns are named '{name}', and only one can be read. Give "
                    "each its own name (data.image_column and data.caption_column choose the ones "
                    "to use)."
                )

    def filled(self, is_filled: Callable[[str], bool]) -> tuple[Chosen, str]:
        """The same, with captions from the first column that has any; and what to say of it.

        Args:
            is_filled: whether a column holds any text.
        """
        (chosen, *more) = self.captions
        if more or not self.others or is_filled(chosen):
            return self, ""
        for name in self.others:
            if is_filled(name):
                others = tuple(other for other in self.others if other != name)
                note = (
                    f"The column '{chosen}' is empty, so '{name}' is used instead (set "
                    "data.caption_column to choose one)."
                )
                return Chosen(self.image, (name,), others), note
        return self, ""

    def entry(self, place: str, row: Mapping[Any, Any], every: bool = True) -> Entry:
        """A row as a pair. `every`: each column must be there, as in a table; else, of several
        columns of captions, one is enough."""
        there = tuple(name for name in self.captions if name in row)
        wanted = self if every or not there else Chosen(self.image, there)
        if fault := wanted.missing(row):
            return Entry(place, row.get(self.image), None, fault)
        held_out = row.get(HELD_OUT)
        truth = _TRUTH.get(str(held_out).strip().lower(), held_out)
        if truth is not None and not isinstance(truth, bool):
            fault = f"'{HELD_OUT}' is {shorten(held_out)}, but must be true or false"
            return Entry(place, row.get(self.image), None, fault)
        text = joined([row[name] for name in there])
        if is_empty(text) and (other := next((n for n in self.others if has_text(row.get(n))), "")):
            (chosen,) = self.captions
            fault = (
                f"'{chosen}' is empty, but '{other}' is not; set data.caption_column to [{chosen}, "
                f"{other}] to read both"
            )
            return Entry(place, row[self.image], None, fault)
        return Entry(place, row[self.image], text, None, truth)


def is_empty(cell: Any) -> bool:
    return cell is None or cell == [] or (isinstance(cell, str) and not cell.strip())


def has_text(cell: Any) -> bool:
    """Whether a cell holds a caption, or a list of some."""
    cell = as_list(cell)
    return (
        any(isinstance(text, str) and text.strip() for text in cell)
        if isinstance(cell, list)
        else isinstance(cell, str) and bool(cell.strip())
    )


def joined(cells: list[Any]) -> Any:
    """The captions of one row: those of the only cell as they are, or of all that are not empty."""
    cells = [as_list(cell) for cell in cells]
    if len(cells) == 1:
        return cells[0]
    captions: list[Any] = []
    for cell in cells:
        captions += [text for text in (cell if isinstance(cell, list) else [cell]) if text]
    # Two columns may well say the same, which is no fault of the row.
    texts = dict.fromkeys(text for text in captions if isinstance(text, str))
    return [*texts, *(text for text in captions if not isinstance(text, str))] or ""


def as_list(cell: Any) -> Any:
    """A cell of text that is written as a list, as pandas and json do, as that list."""
    if not isinstance(cell, str) or len(cell) > _LONGEST_LIST:
        return cell
    text = cell.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return cell
    for read in (json.loads, ast.literal_eval):  # literals only: nothing is executed
        try:
            found = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, list) and all(isinstance(item, str) for item in found):
            return found
    return cell


def _known(counts: Mapping[str, int], known: tuple[str, ...]) -> list[str]:
    """Those of the names that are known, the one of most rows first; of equals the first known."""
    there = [
        name
        for word in known
        for name in counts
        if isinstance(name, str) and name.strip().lower() == word
    ]
    return sorted(there, key=lambda name: -counts[name])


def _commonest(counts: Mapping[str, int], known: tuple[str, ...]) -> str | None:
    return next(iter(_known(counts, known)), None)
