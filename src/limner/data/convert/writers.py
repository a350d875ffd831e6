"""Writers of `limner prepare`, one class per output layout.

The same pictures and captions give the same bytes, whenever and wherever they are written.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, get_args

from limner.data.dataset import HELD_OUT
from limner.data.formats.parquet_rows import NEEDS as PARQUET_NEEDS
from limner.errors import LimnerError

Layout = Literal["metadata", "imagefolder", "pairs", "webdataset", "parquet"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

SHARD_SIZE = "256MiB"
_UNITS = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_ROWS_AT_ONCE, _BYTES_AT_ONCE = 100, 2**25
"""Of a row group in Parquet, which readers take into memory as a whole."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """One picture to write."""

    name: str
    """Without its extension: "image_000001"."""
    data: bytes
    extension: str
    captions: tuple[str, ...]
    held_out: bool | None

    def more(self) -> dict[str, Any]:
        """What a single caption does not say."""
        several = {"captions": list(self.captions)} if len(self.captions) > 1 else {}
        return several | self.aside()

    def aside(self) -> dict[str, bool]:
        return {} if self.held_out is None else {HELD_OUT: self.held_out}


class ShardSize:
    """At most so many pictures, or so many bytes of them: "1000", "256MiB". Raises LimnerError."""

    def __init__(self, text: str) -> None:
        found = re.fullmatch(r"\s*(\d+)\s*([KMG]i?B)?\s*", text, re.IGNORECASE)
        if found is None or not int(found[1]):
            raise LimnerError(
                f"--shard_size is {text!r}; it must be a number of pictures (1000) or a size "
                "(256MiB)"
            )
        self.images = None if found[2] else int(found[1])
        self.bytes = int(found[1]) * _UNITS[found[2].upper()] if found[2] else None

    def is_full(self, images: int, size: int, more: int) -> bool:
        """Whether a shard of so many pictures and bytes ends before one of `more` bytes."""
        if self.images is not None:
            return images >= self.images
        return images > 0 and size + more > (self.bytes or 0)


class Writer(Protocol):
    """Takes pictures one by one; what it wrote is whole after `finish`."""

    def __init__(self, folder: Path, shard_size: ShardSize) -> None: ...

    def add(self, image: EncodedImage) -> None: ...

    def finish(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Lets go of every file, also where there was an error."""
        ...


class _Files:
    """Pictures as files in images/; what is common to the layouts that do that."""

    within = "images"

    def __init__(self, folder: Path, shard_size: ShardSize) -> None:
        self.folder = folder
        self.rows: list[tuple[str, EncodedImage]] = []
        (folder / self.within).mkdir(parents=True, exist_ok=True)

    def add(self, image: EncodedImage) -> None:
        name = f"{self.within}/{image.name}{image.extension}".lstrip("/")
        (self.folder / name).write_bytes(image.data)
        kept = EncodedImage(image.name, b"", image.extension, image.captions, image.held_out)
        self.rows.append((name, kept))

    def finish(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...


class MetadataWriter(_Files):
    """metadata.json: [{"image": ..., "text": ...}]; a list of texts where there are several."""

    def finish(self) -> None:
        rows = [
            {"image": name, "text": _text(image.captions)} | image.aside()
            for name, image in self.rows
        ]
        write_json(self.folder / "metadata.json", rows)


class ImageFolderWriter(_Files):
    """metadata.jsonl as Hugging Face's imagefolder has it: file_name and text, which is a list in
    every row where it is one in any, as Arrow wants columns of one type."""

    def finish(self) -> None:
        several = any(len(image.captions) > 1 for _, image in self.rows)
        lines = [
            {"file_name": name, "text": list(p.captions) if several else p.captions[0]} | p.aside()
            for name, p in self.rows
        ]
        text = "".join(_json(line) + "\n" for line in lines)
        (self.folder / "metadata.jsonl").write_bytes(text.encode("utf-8"))


class PairsWriter(_Files):
    """image_000001.jpg with its caption in image_000001.txt; all of several in a .json beside."""

    within = ""

    def add(self, image: EncodedImage) -> None:
        (self.folder / f"{image.name}{image.extension}").write_bytes(image.data)
        for ending, data in _described(image):
            (self.folder / f"{image.name}{ending}").write_bytes(data)


class WebDatasetWriter:
    """shard-000000.tar, ...: of each picture the file, a .txt with its main caption, and a .json
    {"captions": [all of them]}."""

    def __init__(self, folder: Path, shard_size: ShardSize) -> None:
        self.folder, self.shard_size = folder, shard_size
        self.tar: tarfile.TarFile | None = None
        self.shards = self.images = self.size = 0

    def add(self, image: EncodedImage) -> None:
        members = [(image.extension, image.data)]
        members += [(".txt", image.captions[0].encode("utf-8"))]
        about = {"captions": list(image.captions)} | image.aside()
        members += [(".json", _json(about).encode("utf-8"))]
        more = sum(512 + -(-len(data) // 512) * 512 for _, data in members)  # blocks of 512
        if self.tar is None or self.shard_size.is_full(self.images, self.size, more):
            self._next()
        assert self.tar is not None
        for ending, data in members:
            about_file = tarfile.TarInfo(f"{image.name}{ending}")  # time 0, no owner
            about_file.size = len(data)
            self.tar.addfile(about_file, io.BytesIO(data))
        self.images, self.size = self.images + 1, self.size + more

    def _next(self) -> None:
        self.finish()
        path = self.folder / f"shard-{self.shards:06d}.tar"
        self.tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self.shards, self.images, self.size = self.shards + 1, 0, 0

    def finish(self) -> None:
        if self.tar is not None:
            self.tar.close()
            self.tar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.tar is not None and self.tar.fileobj is not None:
            self.tar.fileobj.close()


class ParquetWriter:
    """data/train-00000-of-00001.parquet: image {bytes, path} and captions, which the package
    datasets shows as pictures and lists of text."""

    def __init__(self, folder: Path, shard_size: ShardSize) -> None:
        try:
            import pyarrow
        except ImportError:
            raise LimnerError(f"--to parquet: {PARQUET_NEEDS}") from None
        self.folder, self.shard_size = folder / "data", shard_size
        self.folder.mkdir(parents=True, exist_ok=True)
        features = {
            "image": {"_type": "Image"},
            "captions": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "Sequence"},
            HELD_OUT: {"dtype": "bool", "_type": "Value"},
        }
        self.schema = pyarrow.schema(
            {
                "image": pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}),
                "captions": pyarrow.list_(pyarrow.string()),
                HELD_OUT: pyarrow.bool_(),
            },
            metadata={"huggingface": json.dumps({"info": {"features": features}})},
        )
        self.writer: Any = None
        self.paths: list[Path] = []
        self.rows: list[dict[str, Any]] = []
        self.waiting = self.images = self.size = 0

    def add(self, image: EncodedImage) -> None:
        more = len(image.data) + sum(len(caption.encode("utf-8")) for caption in image.captions)
        if self.writer is None or self.shard_size.is_full(self.images, self.size, more):
            self._next()
        self.rows.append(
            {
                "image": {"bytes": image.data, "path": f"{image.name}{image.extension}"},
                "captions": list(image.captions),
                HELD_OUT: image.held_out,
            }
        )
        self.waiting += more
        self.images, self.size = self.images + 1, self.size + more
        if len(self.rows) >= _ROWS_AT_ONCE or self.waiting >= _BYTES_AT_ONCE:
            self._flush()

    def _next(self) -> None:
        import pyarrow.parquet as parquet

        self._close()
        self.paths.append(self.folder / f"train-{len(self.paths):05d}.parquet")
        self.writer = parquet.ParquetWriter(self.paths[-1], self.schema, write_page_checksum=True)
        self.images = self.size = 0

    def _flush(self) -> None:
        import pyarrow

        if self.rows:
            self.writer.write_table(pyarrow.Table.from_pylist(self.rows, self.schema))
        self.rows, self.waiting = [], 0

    def _close(self) -> None:
        if self.writer is not None:
            self._flush()
            self.writer.close()
            self.writer = None

    def finish(self) -> None:
        self._close()
        for number, path in enumerate(self.paths):
            path.rename(path.with_name(f"train-{number:05d}-of-{len(self.paths):05d}.parquet"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.writer is not None:
            self.writer.close()


WRITERS: dict[Layout, Callable[[Path, ShardSize], Writer]] = {
    "metadata": MetadataWriter,
    "imagefolder": ImageFolderWriter,
    "pairs": PairsWriter,
    "webdataset": WebDatasetWriter,
    "parquet": ParquetWriter,
}


def write_json(path: Path, data: object) -> None:
    text = json.dumps(data, ensure_ascii=False, indent=1) + "\n"
    # The same line ends on every system; lone surrogates (names that are no UTF-8) as escapes.
    path.write_bytes(text.encode("utf-8", errors="backslashreplace"))


def _described(image: EncodedImage) -> list[tuple[str, bytes]]:
    files = [(".txt", image.captions[0].encode("utf-8"))]
    if more := image.more():
        files.append((".json", _json(more).encode("utf-8")))
    return files


def _json(data: object) -> str:
    return json.dumps(data, ensure_ascii=False)


def _text(captions: tuple[str, ...]) -> str | list[str]:
    return captions[0] if len(captions) == 1 else list(captions)
