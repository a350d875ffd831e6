"""Group the members of a tar file into samples of a picture and its captions.

The rule is WebDataset's: a sample's name goes up to the first dot. Where that would put the members
of several samples together (macOS calls its screenshots "Shot 10.15.21.png"), the name goes up to
the last dot; and what then fits nothing is refused, rather than trained with another's caption.
Of several members of one name, as `tar -r` appends them, the last one counts.
"""

from __future__ import annotations

import posixpath
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import numpy as np

from limner.data import images as images
from limner.data import regular_files
from limner.data.folder_walk import composed
from limner.data.formats.encodings import SAMPLE, decode, detect, is_undecoded, is_wide
from limner.data.image_paths import MAX_PATH
from limner.data.streaming.tar_headers import Member
from limner.files.system_names import is_system_path
from limner.messages import shorten_name

TEXTS = frozenset({"txt", "text", "caption"})
"""What the names of members end with that are captions."""
MAX_TEXT = 2**20
"""Bytes of a .txt or .json; longer ones are not captions."""

IMAGE, TEXT, JSON, FAULT = range(4)


class Part(NamedTuple):
    """One member of a sample."""

    name: str
    """With its folder, composed; up to its last dot it is `stem`."""
    stem: str
    kind: int
    offset: int
    size: int
    text: str
    """Of a TEXT or JSON what it holds, of a FAULT what is wrong."""


@dataclass
class Sample:
    """Everything of one name; it may lack a half."""

    key: str
    image: Part | None = None
    texts: list[str] = field(default_factory=list)
    json: str | None = None
    faults: list[str] = field(default_factory=list)
    """Of the sample as a whole."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of members that are left out, though the sample is good."""


class TarMembers:
    """The members of a tar, kept in arrays, until all are there.

    Args:
        encoding: `data.encoding`.
    """

    def __init__(self, encoding: str | None) -> None:
        self.encoding = encoding
        self.keys, self.full = array("q"), array("q")  # hashes of the sample's name and the whole
        self.kinds, self.offsets, self.sizes = array("b"), array("q"), array("q")
        self.names, self.name_ends = bytearray(), array("q", [0])
        self.texts, self.text_ends = bytearray(), array("q", [0])
        self.undecoded = bytearray()  # a sample of the texts that are not UTF-8
        self.guessed: str | None = None

    def take(self, member: Member, file: BinaryIO) -> None:
        """A member, if it belongs to a sample. Captions are read from the file."""
        path = composed(member.name.removeprefix("./"))
        folder, name = posixpath.split(path)
        first, dot, _ = name.partition(".")
        ending = name.rpartition(".")[2].lower()
        kind = JSON if ending == "json" else TEXT if ending in TEXTS else IMAGE
        if member.kind == "folder" or not first or not dot or is_system_path(path):
            return
        if kind == IMAGE and f".{ending}" not in images.EXTENSIONS:
            return
        fault = _fault(member, name, kind)
        if fault is not None:
            kind, text = FAULT, fault.encode("utf-8", "surrogateescape")
        elif kind == IMAGE:
            text = b""
        else:
            file.seek(member.offset)
            text = file.read(member.size)
            self._note(text)
        self.keys.append(hash(posixpath.join(folder, first)))
        self.full.append(hash(path))
        self.kinds.append(kind)
        self.offsets.append(member.offset)
        self.sizes.append(member.size)
        self.names += path.encode("utf-8", "surrogateescape")
        self.name_ends.append(len(self.names))
        self.texts += text
        self.text_ends.append(len(self.texts))

    def _note(self, text: bytes) -> None:
        if len(self.undecoded) < SAMPLE and is_undecoded(decode(text)):
            self.undecoded += text + b"\n"

    def samples(self) -> Iterator[Sample]:
        """Of every name one, in the order of their first members."""
        if self.undecoded and self.encoding is None:
            self.guessed = detect(bytes(self.undecoded))
        for members in self._groups():
            yield from together([self._part(int(member)) for member in members])

    def _groups(self) -> Iterator[np.ndarray]:
        """Numbers of the members that share a name up to the first dot, those of one name that come
        before the last left out."""
        count = len(self.keys)
        if not count:
            return
        keys, full = (np.frombuffer(a, dtype=np.int64) for a in (self.keys, self.full))
        _, last = np.unique(full[::-1], return_index=True)
        newest = np.sort(count - 1 - last)
        order = newest[np.argsort(keys[newest], kind="stable")]
        changes = np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1
        groups = np.split(order, changes)
        for number in np.argsort([group[0] for group in groups], kind="stable"):
            yield groups[number]

    def _part(self, number: int) -> Part:
        name = self.names[self.name_ends[number] : self.name_ends[number + 1]]
        path = name.decode("utf-8", "surrogateescape")
        kind = self.kinds[number]
        held = bytes(self.texts[self.text_ends[number] : self.text_ends[number + 1]])
        text = held.decode("utf-8", "surrogateescape") if kind == FAULT else self._text(held)
        stem = path.rpartition(".")[0]
        return Part(path, stem, kind, self.offsets[number], self.sizes[number], text)

    def _text(self, data: bytes) -> str:
        text = decode(data, self.encoding)
        name = self.guessed or self.encoding
        if name and not is_wide(name) and is_undecoded(text):
            try:
                return data.decode(name)
            except UnicodeDecodeError:
                pass
        return text


def _fault(member: Member, name: str, kind: int) -> str | None:
    called = shorten_name(name)
    if member.kind != "file":
        return f"{called} is {member.kind}, not a file"
    if "\0" in member.name or len(member.name) > MAX_PATH:
        return (
            f"{called} is not a valid name: it contains a NUL character, or is longer than any path"
        )
    most = regular_files.MAX_IMAGE_BYTES if kind == IMAGE else MAX_TEXT
    if member.size > most:
        what = "more than the maximum for a picture" if kind == IMAGE else "too long for a caption"
        return f"{called} has {member.size:,} bytes: {what}"
    return None


def together(parts: Sequence[Part]) -> list[Sample]:
    """The samples of members that share a name up to the first dot."""
    folder, name = posixpath.split(parts[0].name)
    key = posixpath.join(folder, name.partition(".")[0])
    if not _collide(parts, key):
        return [_sample(key, parts)]
    by_stem: dict[str, list[Part]] = {}
    for part in parts:
        by_stem.setdefault(part.stem, []).append(part)
    samples = [_sample(stem, members) for stem, members in by_stem.items()]
    if any(s.image and (s.texts or s.json is not None) for s in samples):
        return samples
    captions = [part for part in parts if part.kind in (TEXT, JSON)]
    if all(part.stem == key for part in captions):  # several pictures of one caption
        return [_sample(key, parts)]
    fault = (
        "its pictures and captions have the same names up to the first dot, but not up to the "
        "last, so it is unknown which belongs to which. Give each pair the same name"
    )
    return [Sample(key, faults=[fault])]


def _collide(parts: Sequence[Part], key: str) -> bool:
    """Whether members of several samples may be among these."""
    images = [part for part in parts if part.kind == IMAGE]
    if len(images) > 1:
        return True
    if not images or images[0].stem == key:
        return False
    endings = [part.name.rpartition(".")[2].lower() for part in parts if part.kind in (TEXT, JSON)]
    return len(set(endings)) < len(endings)


def _sample(key: str, parts: Sequence[Part]) -> Sample:
    sample = Sample(key)
    for part in parts:
        name = posixpath.basename(part.name)
        if part.kind == FAULT:
            sample.faults.append(part.text)
        elif part.kind == TEXT:
            sample.texts.append(part.text)
        elif part.kind == JSON:
            if sample.json is None or part.stem == key:
                sample.json = part.text
        elif sample.image is None:
            sample.image = part
        else:
            used = posixpath.basename(sample.image.name)
            sample.refused.append((part.name, f"{name} is a second picture; {used} is used"))
    return sample
