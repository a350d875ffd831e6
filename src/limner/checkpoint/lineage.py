"""lineage.json: the data a model learned from, its base model, and so on back.

It is written at the start of a run, into each of its checkpoints, and into the header of an
exported file, so that a model card can give credit where it is due:

    {"format": 1,
     "model": "owner/name" on the Hub, or null,
     "name": what its folder or file was called here; null in what is published,
     "license": "cc-by-4.0", or null where nobody said,
     "method": "full" | "lora" | "distilled",
     "data": [{"name": "emoji", "license": "cc-by-4.0"}, ...]; a private set's name is null,
     "complete": whether `base` is known; false of a model from before this file was written,
     "base": the same of the model that it began from; null: none}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from limner.errors import LimnerError
from limner.files.small_files import parse_json, read_text
from limner.redaction import is_hub_id

if TYPE_CHECKING:
    from limner.config import Config

FILE = "lineage.json"
FORMAT = 1
LICENSES = {"emoji": "cc-by-4.0", "shapes": "apache-2.0"}
"""Licences of the built-in data sets."""
A_PRIVATE_SET = "a private data set"
DEEPEST = 100  # models, each started from the next
Method = Literal["full", "lora", "distilled"]


@dataclass(frozen=True)
class LearnedFrom:
    """A data set."""

    name: str | None = None
    """Its public name: built in, on the Hub, or as its publisher says; None: it is private."""
    license: str | None = None

    def __str__(self) -> str:
        name = self.name or A_PRIVATE_SET
        return f"{name} (licence: {self.license})" if self.license else name


@dataclass(frozen=True)
class Lineage:
    """The lineage of one model; see the top of this file."""

    model: str | None = None
    name: str | None = None
    license: str | None = None
    method: Method = "full"
    data: tuple[LearnedFrom, ...] = ()
    complete: bool = True
    base: Lineage | None = None

    def models_before(self) -> Iterator[Lineage]:
        """The model that it began from, the one before that, and so on."""
        before = self.base
        while before is not None:
            yield before
            before = before.base

    def public(self) -> Lineage:
        """The same without names of local folders and files."""
        return replace(self, name=None, base=self.base and self.base.public())

    def and_from(self, data: LearnedFrom, another: bool) -> Lineage:
        """The same model after further training on `data`.

        Args:
            another: whether the data set differs from the last one, which cannot be told of private
                sets.
        """
        if data in self.data and not (another and data.name is None):
            return self
        return replace(self, data=(*self.data, data))

    def said(self, name: str | None, license: str | None) -> Lineage:
        """The same with a name and a licence for its private data set; of several, the last."""
        own = LearnedFrom(name, license)
        private = [i for i, one in enumerate(self.data) if one.name is None]
        if own in self.data or not private:
            return self
        return replace(self, data=(*self.data[: private[-1]], own, *self.data[private[-1] + 1 :]))

    def within(self, depth: int) -> Lineage:
        """The same with at most `depth` models before it. The last of them takes over the data sets
        of those that are cut off."""
        if self.base is None:
            return self
        if depth:
            return replace(self, base=self.base.within(depth - 1))
        before = (data for one in self.models_before() for data in one.data)
        return replace(
            self, data=tuple(dict.fromkeys((*self.data, *before))), base=None, complete=False
        )

    def to_json(self, indent: int | None = 1) -> str:
        values = asdict(self.within(DEEPEST))
        return json.dumps({"format": FORMAT, **values}, ensure_ascii=False, indent=indent)

    @classmethod
    def from_json(cls, text: str, where: str | Path) -> Lineage:
        """Parse what `to_json` wrote. Raises LimnerError for anything else."""
        try:
            return _read(parse_json(text, "its lineage"))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise LimnerError(f"{where} is damaged: {error}") from None


def lineage_of_config(config: Config) -> Lineage:
    """The lineage of a model that was saved without one, from its configuration."""
    data, begun = (learned_from(config),), config.training.init_from
    method = method_of(config)
    if begun is None:
        return Lineage(data=data, method=method)
    return Lineage(data=data, method=method, base=named(Lineage(complete=False), begun))


def method_of(config: Config) -> Method:
    """How a run of this configuration learns."""
    if config.model.flow_map:
        return "distilled"
    return "full" if config.lora.rank is None else "lora"


def learned_from(config: Config) -> LearnedFrom:
    """The data set of a configuration, by its public name if it has one."""
    name = config.data.dataset_name or ""
    if name.lower() in LICENSES:
        return LearnedFrom(name.lower(), LICENSES[name.lower()])
    return LearnedFrom(name if is_hub_id(name) else None)


def named(lineage: Lineage, place: str) -> Lineage:
    """The same with the Hub id, or the name of the folder or file, by which it was opened."""
    if is_hub_id(place):
        return replace(lineage, model=place.partition("@")[0])
    parts = place.replace("\\", "/").rstrip("/").split("/")
    run = parts[-2:] if parts[-1].startswith("checkpoint-") else parts[-1:]
    return replace(lineage, name="/".join(run))


def before_in_words(
    lineage: Lineage,
    model: Callable[[str], str] = str,
    data: Callable[[LearnedFrom], str] = str,
    license: Callable[[str], str] = str,
) -> list[str]:
    """A sentence for each model before this one: which it is, and what it learned from.

    Args:
        model: formats a Hub id or a name.
        data: formats a data set.
        license: formats the licence of a model.
    """
    said, it = [], "It"
    for before in lineage.models_before():
        known = before.model or before.name
        shown = model(known) if known else "a model that is not public"
        under = f" (licence: {license(before.license)})" if before.license else ""
        if before.data:
            learned = f", which learned from {sets_in_words(map(data, before.data))}"
        else:
            learned = "; what that one learned from was not recorded"
        said.append(f"{it} began from {shown}{under}{learned}.")
        it = "That one"
        if not before.complete and before.data:
            said.append("What that one began from, if from anything, was not recorded.")
    return said


def sets_in_words(sets: Iterable[str]) -> str:
    """The names of data sets as text; several may be private."""
    said = list[str]()
    for one in sets:
        said.append(one.replace("a private", "another private", 1) if one in said else one)
    return " and ".join(said)


def read_lineage(folder: Path) -> Lineage | None:
    """The lineage of a run or a checkpoint; None: it was written before there was such a file.

    Raises:
        LimnerError: it is damaged.
    """
    path = folder / FILE
    try:
        return Lineage.from_json(read_text(path), path)
    except FileNotFoundError:
        return None


def write_lineage(folder: Path, lineage: Lineage) -> None:
    """Raises OSError."""
    (folder / FILE).write_text(lineage.to_json() + "\n", encoding="utf-8", newline="\n")


def _read(values: Any, depth: int = 0) -> Lineage:
    if not isinstance(values, Mapping) or depth > DEEPEST:
        raise ValueError("it is no lineage")
    data = tuple(LearnedFrom(_text(d, "name"), _text(d, "license")) for d in values["data"])
    base = values.get("base")
    return Lineage(
        model=_text(values, "model"),
        name=_text(values, "name"),
        license=_text(values, "license"),
        method=found if (found := values.get("method")) in ("lora", "distilled") else "full",
        data=data,
        complete=values.get("complete") is not False,
        base=None if base is None else _read(base, depth + 1),
    )


def _text(values: Mapping[str, Any], key: str) -> str | None:
    found = values.get(key)
    if found is not None and not isinstance(found, str):
        raise ValueError(f"{key} is no text")
    return found
