"""WebDataset: tar files in which a picture and its caption share a base name.

    0001.jpg 0001.txt 0002.jpg 0002.json ...

Which members make a sample: see `tar_samples`. Its captions are the .txt (the whole text is one
caption) and the list "captions" of a .json beside it, as with files in a folder; or, of a .json
alone, the key that `data.caption_column` names, or that is commonly called so. "held_out" in the
.json says, by true or false, whether the sample is never trained on. Members of one sample usually
are neighbours; where they are not they are found all the same. Plain tars only: in a compressed one
no picture could be read by itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from limner.config import Config
from limner.data.dataset import HELD_OUT
from limner.data.formats.columns import CAPTIONS, Columns, has_text, joined
from limner.data.formats.entries import check_caption, is_unicode
from limner.data.formats.tar_samples import Sample, TarMembers
from limner.data.image_paths import MAX_PATH
from limner.data.streaming.remote_files import Place, find, open_place, read_range
from limner.data.streaming.shard_index import Building, Index
from limner.data.streaming.sharded_dataset import ShardImages, open_shards
from limner.data.streaming.tar_headers import Damaged, members
from limner.errors import LimnerError
from limner.messages import shorten, shorten_name

ENDINGS = (".tar",)
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")


def open_tars(config: Config) -> ShardImages:
    """The tars at `data.dataset_path`: a file, folder, pattern, or URL. Raises LimnerError."""
    return open_tar_files(config, config.data.dataset_path, config.data.dataset_path)


def open_tar_files(config: Config, path: str | Sequence[str], name: str) -> ShardImages:
    if isinstance(path, str) and path.lower().split("?")[0].endswith(COMPRESSED):
        raise LimnerError(
            f"data.dataset_path: {path} is compressed as a whole, so its pictures cannot be read "
            "at random. Decompress it to a plain .tar (gunzip, unxz, ...); the pictures in it are "
            "compressed anyway"
        )
    kind = Tars(Columns.of(config).captions, config.data.encoding)
    return open_shards(name, kind, find(path, ENDINGS), config)


class Tars:
    """Tar as a `Kind` of shards."""

    layout = "WebDataset tars"
    direct = True

    def __init__(
        self, captions: tuple[str, ...] | None = None, encoding: str | None = None
    ) -> None:
        self.captions, self.encoding = captions, encoding
        self.name = f"tar {json.dumps([captions, encoding])}"

    def build(self, place: Place, building: Building) -> None:
        found = TarMembers(self.encoding)
        with open_place(place) as file:
            try:
                for member in members(file, place.size):
                    found.take(member, file)
            except Damaged as error:
                reason = f"{error}; what follows is not read. Write or download the file again."
                building.refuse("(the rest of the tar)", f"{place.url}: {reason}")
        for sample in found.samples():
            self._add(building, sample)
        if found.guessed:
            building.notes.append(
                f"Captions of {building.name} are not in UTF-8 and are read as {found.guessed}, a "
                "guess (set data.encoding to be certain)."
            )

    def _add(self, building: Building, sample: Sample) -> None:
        """Add a sample, or refuse what cannot be used of it."""
        key = _readable(sample.key)
        for name, reason in sample.refused:
            building.refuse(_readable(name), reason)
        if sample.image is None or not (sample.texts or sample.json is not None):
            what = "picture" if sample.image is None else ".txt or .json"
            reasons = sample.faults or [f"there is no {what} of that name in the tar"]
            building.refuse(key, "; ".join(reasons))
            return
        found, held_out, faults = self._captions(sample)
        captions = dict[str, None]()
        for caption in found:
            if fault := check_caption(caption):
                faults.append(fault)
            else:
                captions[caption.strip()] = None
        if captions:
            image = sample.image
            building.add(key, tuple(captions), image.offset, image.size, held_out)
        if faults or not captions:
            building.refuse(key, "; ".join([*sample.faults, *faults]))

    def _captions(self, sample: Sample) -> tuple[list[Any], bool | None, list[str]]:
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
            return [], None, [f"its .json contains {shorten(about)}, not an object with a caption"]
        held_out = about.get(HELD_OUT) if isinstance(about.get(HELD_OUT), bool) else None
        if sample.texts and self.captions is None:
            more = about.get("captions")
            return [*sample.texts, *(more if isinstance(more, list) else [])], held_out, []
        known = [name for name in CAPTIONS if name in about]
        filled = [name for name in known if has_text(about[name])]
        names = self.captions or (filled or known)[:1]
        there = [about[name] for name in names if name in about]
        if not there:
            wanted = ", ".join(self.captions or CAPTIONS[:3])
            has = ", ".join(shorten(name, 40) for name in list(about)[:10]) or "nothing"
            fault = f"its .json has no {wanted}, only {has}"
            return [], None, [f"{fault}; set data.caption_column to another"]
        cell = joined(there)
        if cell == []:
            return [], held_out, ["the list of captions is empty"]
        return (cell if isinstance(cell, list) else [cell]), held_out, []

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


def _readable(key: str) -> str:
    """A key as text that can be written down: bytes that are no UTF-8 as their numbers."""
    key = shorten_name(key) if len(key) > MAX_PATH or "\0" in key else key
    return (
        key
        if is_unicode(key)
        else key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    )
