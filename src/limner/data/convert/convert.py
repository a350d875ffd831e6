"""Convert a data set from any input format to any output layout."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from limner.choices import TYPES
from limner.config import load_config
from limner.data.convert.writers import (
    SHARD_SIZE,
    WRITERS,
    EncodedImage,
    Layout,
    ShardSize,
    write_json,
)
from limner.data.dataset import ImageDataset, ImageError, PackedImages, Refused, Row, require_rows
from limner.data.images import NotAnImageFile, open_rgb, opened, read_image
from limner.data.open import open_image_dataset
from limner.data.own_folder import keep_out_of, keep_out_of_links
from limner.data.split import sampling_rank
from limner.errors import LimnerError
from limner.files.atomic import refuse_mounted, replacing
from limner.files.folder_lock import FolderLock
from limner.files.output_folders import foreign_names


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `prepare` wrote, and the rows that it could not use (also in refused.json)."""

    count: int
    refused: list[Refused]
    description: str
    """Of the input: in which format it was found to be."""


def prepare(
    kind: str,
    source: str | Path,
    output: str | Path,
    num_samples: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    to: Layout = "metadata",
    shard_size: str = SHARD_SIZE,
    overrides: Sequence[str] = (),
) -> Prepared:
    """Convert a data set: write every valid picture with all its captions in one of the layouts.

    Args:
        kind: format of the source, one of TYPES; "auto" detects it.
        source: a folder or file, or a pattern or URL of shards (as text: a `Path` would make one
            slash of two); with kind "datasets" it may be a Hub id.
        num_samples: maximum number of valid pictures, chosen and numbered by a hash of their keys,
            so that a larger number only adds to them. None: all, in the order of the source.
        on_progress: called as on_progress(rows done, rows in total) after each row.
        to: output layout;  "metadata" is output/images/image_000001.jpg ... and
            output/metadata.json.
        shard_size: maximum size of a shard, in pictures or bytes.
        overrides: `data.key=value`, as for a run, such as columns or split.

    JPEG and PNG files without transparency are copied byte for byte, others become PNG (upright, on
    white). Who is held out is written where the source says so. Rows that cannot be used are
    listed in output/refused.json. Everything is written to a folder beside `output`, which takes
    its name at the end: a killed run leaves no half-made data set.

    Raises:
        LimnerError: `output` is in use, the source cannot be read, or no picture is valid.
    """
    output = Path(output).expanduser().absolute()
    with FolderLock(output, "choose another --output"):
        return _prepare(kind, source, output, num_samples, on_progress, to, shard_size, overrides)


def _prepare(
    kind: str,
    source: str | Path,
    output: Path,
    num_samples: int | None,
    on_progress: Callable[[int, int], None] | None,
    to: Layout,
    shard_size: str,
    overrides: Sequence[str],
) -> Prepared:
    _refuse_filled(output)
    if num_samples is not None and num_samples < 1:
        raise LimnerError(
            f"--num_samples is {num_samples}; it must be at least 1. Without it, all are used."
        )
    size = ShardSize(shard_size)
    if (folder := Path(source).expanduser()).is_dir():
        keep_out_of(output, folder, "--output")
    dataset = _open(kind, str(source), overrides)
    keep_out_of_links(output, dataset, "--output")
    rows: Sequence[Row] = dataset.rows
    refused = list(dataset.refused)
    if num_samples is not None:
        rows = sorted(rows, key=lambda row: sampling_rank(row.key))

    count = 0
    try:
        with (
            replacing(output, folder=True, check=_refuse_filled) as staging,
            WRITERS[to](staging, size) as writer,
        ):
            for done, row in enumerate(rows, start=1):
                try:
                    data, extension = _verified(_bytes(dataset, row), row.key)
                    name = f"image_{count + 1:06d}"
                    writer.add(EncodedImage(name, data, extension, row.captions, row.held_out))
                    count += 1
                except ImageError as error:
                    refused.append(Refused(row.key, str(error).removeprefix(f"{row.key}: ")))
                if on_progress:
                    on_progress(done, len(rows))
                if count == num_samples:
                    break
            require_rows(range(count), refused, str(source))
            writer.finish()
            listed = [{"key": row.key, "reason": row.reason} for row in refused]
            write_json(staging / "refused.json", listed)
    except OSError as error:
        raise LimnerError(
            f"{output} could not be written: {error.strerror or error}. Check free space and "
            "permissions."
        ) from error
    return Prepared(count, refused, dataset.description)


def _refuse_filled(output: Path) -> None:
    refuse_mounted(output)
    if foreign_names(output):
        raise LimnerError(
            f"{output} already exists and is not empty. Nothing was written; remove it, or choose "
            "another --output."
        )


def _open(kind: str, source: str, overrides: Sequence[str]) -> ImageDataset:
    if kind not in TYPES:
        raise LimnerError(f"--type is {kind!r}: it must be {', '.join(TYPES[:-1])} or {TYPES[-1]}.")
    data = {"dataset_path": source, "format": "auto" if kind == "custom" else kind}
    if kind == "datasets" and not Path(source).expanduser().exists():
        data["dataset_name"] = source
    return open_image_dataset(load_config({"data": data}, overrides))


def _bytes(dataset: ImageDataset, row: Row) -> bytes:
    """The encoded picture. Raises ImageError."""
    if dataset.path(row) is None and not isinstance(dataset, PackedImages):
        raise ImageError(f"{row.key}: {dataset.name} contains no picture files")
    source = dataset.image(row)
    try:
        return source if isinstance(source, bytes) else read_image(source)
    except NotAnImageFile as error:
        raise ImageError(f"{row.key}: the file cannot be read: {error}.") from error
    except OSError as error:
        raise ImageError(f"{row.key}: the file cannot be read ({error.strerror}).") from error


def _verified(data: bytes, key: str) -> tuple[bytes, str]:
    """(bytes, extension) to write of a picture that was decoded to its end. Raises ImageError."""
    image = open_rgb(data, key)
    if extension := _extension_to_keep(data):
        return data, extension
    new = io.BytesIO()
    image.save(new, "PNG", icc_profile=None)  # its colours are sRGB by now
    return new.getvalue(), ".png"


def _extension_to_keep(data: bytes) -> str | None:
    """The extension of a file that every program reads alike, None for one to be written anew."""
    with opened(data) as image:
        if image.mode not in ("RGB", "L") or image.has_transparency_data:
            return None
        return {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png"}.get(image.format or "")
