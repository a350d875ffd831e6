"""WebDataset: tars in which a picture and its caption are members of one name.

    0001.jpg 0001.txt 0002.jpg 0002.json ...

A sample's key is the path up to the first dot of the name. Its captions are the .txt (the whole
text is one caption) and the list "captions" of a .json beside it, as with files in a folder; or, of
a .json alone, the key that `data.caption_column` names, or that is commonly called so. "held_out"
in the .json says, by true or false, whether the sample is never trained on. Members of one sample
usually are neighbours; where they are not they are found all the same. Plain tars only: in a
compressed one no picture could be read by itself.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from limner.config import Config
from limner.data import pictures
from limner.data.formats.columns import CAPTIONS, HELD_OUT, Columns, joined
from limner.data.formats.entries import check_caption, is_unicode
from limner.data.streams.index import Building, Index
from limner.data.streams.places import Place, find, open_place, read_range
from limner.data.streams.shards import ShardPictures, open_shards
from limner.data.streams.tar_headers import Damaged, Member, members
from limner.errors import LimnerError

ENDINGS = (".tar",)
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
TEXTS = frozenset({"txt", "text", "caption"})
"""What the names of members end with that are captions."""
MOST_TEXT = 2**20
"""Bytes of a .txt or .json; longer ones are not captions."""


def open_tars(config: Config) -> ShardPictures:
    """The tars at `data.dataset_path`: a file, folder, pattern, or URL. Raises LimnerError."""
    return open_tar_files(config, config.data.dataset_path, config.data.dataset_path)


def open_tar_files(config: Config, path: str | Sequence[str], name: str) -> ShardPictures:
    if isinstance(path, str) and path.lower().split("?")[0].endswith(COMPRESSED):
        raise LimnerError(
            f"data.dataset_path: {path} is compressed as a whole, so that no picture in it can be "
            "read without all before it; pictures are compressed already: unpack it to a plain "
            ".tar (gunzip, unxz, ...)"
        )
    return open_shards(name, Tars(Columns.of(config).captions), find(path, ENDINGS), config)


class Tars:
    """Tar as a `Kind` of shards."""

    layout = "WebDataset tars"
    direct = True

    def __init__(self, captions: tuple[str, ...] | None = None) -> None:
        self.captions = captions
        self.name = f"tar {json.dumps(captions)}"

    def build(self, place: Place, building: Building) -> None:
        with open_place(place) as file:
            reading = _Reading(file, building, self.captions)
            try:
                for member in members(file, place.size):
                    reading.take(member)
            except Damaged as error:
                reason = f"{error}; what follows is not read. Make or download the file anew."
                building.refuse("(the rest of the tar)", f"{place.url}: {reason}")
            reading.finish()

    def fetch(self, index: Index, piece: int) -> list[bytes]:
        first, last = index.piece_firsts[piece : piece + 2].tolist()
        offsets, sizes = index.offsets[first:last].tolist(), index.sizes[first:last].tolist()
        begin = offsets[0]
        ends = [offset + size for offset, size in zip(offsets, sizes, strict=True)]
        whole = memoryview(read_range(index.place, begin, max(ends)))
        return [
            bytes(whole[offset - begin : end - begin])
            for offset, end in zip(offsets, ends, strict=True)
        ]

    def fetch_one(self, index: Index, number: int) -> bytes | None:
        offset = int(index.offsets[number])
        return read_range(index.place, offset, offset + int(index.sizes[number]))


@dataclass
class _Sample:
    """What was found of one key."""

    picture: Member | None = None
    texts: list[str] = field(default_factory=list)
    json: str | None = None
    faults: list[str] = field(default_factory=list)


class _Reading:
    """Members as they come, put together to samples.

    A sample is done when the next one begins. One that lacks something then waits for it until the
    end of the tar, so that a tar whose members are in no order is read, too.
    """

    def __init__(
        self, file: BinaryIO, building: Building, captions: tuple[str, ...] | None
    ) -> None:
        self.file, self.building, self.captions = file, building, captions
        self.key: str | None = None
        self.sample = _Sample()
        self.waiting: dict[str, _Sample] = {}

    def take(self, member: Member) -> None:
        path = member.name.removeprefix("./")
        folder, name = posixpath.split(path)
        stem, dot, ending = name.partition(".")
        last = ending.rpartition(".")[2].lower()
        is_picture = f".{last}" in pictures.EXTENSIONS
        # Of no use, or of the system: "._apple.jpg" is what macOS puts beside apple.jpg.
        if member.kind == "folder" or not stem or not dot:
            return
        if not (is_picture or last in TEXTS or last == "json"):
            return
        key = posixpath.join(folder, stem)
        if key != self.key:
            self.next(key)
        if member.kind != "file":
            self.sample.faults.append(f"{name} is {member.kind}, not a file")
        elif is_picture:
            if self.sample.picture is None:
                self.sample.picture = member
            else:
                used = posixpath.basename(self.sample.picture.name)
                reason = f"{name} is a second picture of the sample; {used} is used"
                self.building.refuse(_readable(f"{key}.{ending}"), reason)
        elif member.size > MOST_TEXT:
            self.sample.faults.append(f"{name} has {member.size:,} bytes: it is no caption")
        elif last == "json":
            self.sample.json = self.text(member)
        else:
            self.sample.texts.append(self.text(member))

    def text(self, member: Member) -> str:
        self.file.seek(member.offset)
        return self.file.read(member.size).decode("utf-8-sig", errors="surrogateescape")

    def next(self, key: str | None) -> None:
        """What was begun is done, or waits; `key` begins, or goes on."""
        if self.key is not None and not self.done(self.key, self.sample):
            self.waiting[self.key] = self.sample
        self.key = key
        self.sample = _Sample() if key is None else self.waiting.pop(key, _Sample())

    def finish(self) -> None:
        self.next(None)
        for key, sample in self.waiting.items():
            if sample.faults:
                reason = "; ".join(sample.faults)
            elif sample.picture is None:
                reason = "there is no picture of that name in the tar"
            else:
                reason = "there is no .txt or .json of that name in the tar"
            self.building.refuse(_readable(key), reason)

    def done(self, key: str, sample: _Sample) -> bool:
        """Whether the sample had all it needs, and was added or refused."""
        picture = sample.picture
        if picture is None or not (sample.texts or sample.json is not None):
            return False
        key = _readable(key)
        found, held_out, faults = self.found(sample)
        captions = dict[str, None]()
        for caption in found:
            if fault := check_caption(caption):
                faults.append(fault)
            else:
                captions[caption.strip()] = None
        if captions:
            self.building.add(key, tuple(captions), picture.offset, picture.size, held_out)
        if faults or not captions:
            self.building.refuse(key, "; ".join([*sample.faults, *faults]))
        return True

    def found(self, sample: _Sample) -> tuple[list[Any], bool | None, list[str]]:
        """(captions, unchecked; whether held out; what is wrong where there are none)."""
        if sample.json is None:
            return list(sample.texts), None, []
        try:
            about = json.loads(sample.json)
        except (ValueError, RecursionError) as error:
            return [], None, [f"its .json is not valid JSON: {error}"]
        if not isinstance(about, dict):
            if sample.texts and self.captions is None:  # programs keep other things there
                return list(sample.texts), None, []
            return [], None, [f"its .json holds {str(about)[:40]!r}, not an object with a caption"]
        held_out = about.get(HELD_OUT) if isinstance(about.get(HELD_OUT), bool) else None
        if sample.texts and self.captions is None:
            more = about.get("captions")
            return [*sample.texts, *(more if isinstance(more, list) else [])], held_out, []
        names = self.captions or [name for name in CAPTIONS if name in about][:1]
        there = [about[name] for name in names if name in about]
        if not there:
            wanted = ", ".join(self.captions or CAPTIONS[:3])
            has = ", ".join(map(str, about)) or "nothing"
            fault = f"its .json has no {wanted}, only {has[:200]}"
            return [], None, [f"{fault}; data.caption_column names another"]
        cell = joined(there)
        return (cell if isinstance(cell, list) else [cell]), held_out, []


def _readable(key: str) -> str:
    """A key as text that can be written down: bytes that are no UTF-8 as their numbers."""
    return (
        key
        if is_unicode(key)
        else key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    )
