"""Turns COCO captions, or any folder that is read here, into the plain layout of metadata.json."""

from __future__ import annotations

import io
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from limner.data.formats.folders import (
    Entry,
    FolderPictures,
    Listing,
    collect,
    existing_folder,
    parse_json,
    read_text,
    require_rows,
)
from limner.data.pictures import open_rgb
from limner.data.rows import PictureError, Refused, Row
from limner.data.split import sampling_rank
from limner.errors import LimnerError


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `prepare` wrote, and the rows that it could not use (also in refused.json)."""

    count: int
    refused: list[Refused]


def prepare(
    kind: Literal["coco", "custom"],
    source: str | Path,
    output: str | Path,
    num_samples: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Writes output/images/image_000001.jpg ... and output/metadata.json, every picture verified.

    kind: "coco", a folder with annotations/captions_*.json and the picture folders they name, or
    such a JSON with the pictures beside it; "custom", any folder that FolderPictures reads.
    num_samples: that many good pictures at most, chosen and numbered by a hash of their paths, so
    that a larger number only adds to them; None takes all, in the order of the source.
    on_progress: called with (rows done, rows at most) after each row.

    "text" is a string where a picture has one caption, a list where it has more. JPEG and PNG
    files without transparency are copied byte for byte, others become PNG (upright, on white).
    Rows that cannot be used are listed in output/refused.json. Everything is written to a folder
    beside `output`, which takes its name at the end: a killed run leaves no half-made data set.
    Raises LimnerError if `output` is in use, the source cannot be read, or no picture is good.
    """
    output = Path(output).expanduser().absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise LimnerError(
            f"{output} exists already and is not empty. "
            "Nothing was written: remove it, or choose another --output."
        )
    if num_samples is not None and num_samples < 1:
        raise LimnerError(f"--num_samples is {num_samples}: give 1 or more, or leave it out.")
    folder, rows, refused = _read(kind, Path(source))
    if num_samples is not None:
        rows = sorted(rows, key=lambda row: sampling_rank(row.key))

    staging = output.with_name(f".{output.name}.limner-unfinished")
    shutil.rmtree(staging, ignore_errors=True)  # what a killed run left
    try:
        (staging / "images").mkdir(parents=True)
        metadata: list[dict[str, Any]] = []
        for done, row in enumerate(rows, start=1):
            try:
                name = _copy(folder / row.key, row.key, staging, number=len(metadata) + 1)
                text = row.captions[0] if len(row.captions) == 1 else list(row.captions)
                metadata.append({"image": name, "text": text})
            except PictureError as error:
                refused.append(Refused(row.key, str(error).removeprefix(f"{row.key}: ")))
            if on_progress:
                on_progress(done, len(rows))
            if len(metadata) == num_samples:
                break
        require_rows(metadata, refused, folder)
        _write_json(staging / "metadata.json", metadata)
        _write_json(
            staging / "refused.json", [{"key": row.key, "reason": row.reason} for row in refused]
        )
        if output.exists():
            output.rmdir()  # empty; Windows does not rename onto a folder
        staging.rename(output)
    except OSError as error:
        raise LimnerError(
            f"{output} could not be written: {error.strerror or error}. "
            "Check the free space and your permissions there."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Prepared(len(metadata), refused)


def _read(kind: str, source: Path) -> tuple[Path, list[Row], list[Refused]]:
    """(folder that the keys are relative to, rows, refused)."""
    if kind == "coco":
        return _read_coco(source)
    if kind == "custom":
        custom = FolderPictures(source)
        return custom.folder, custom.rows, custom.refused
    raise LimnerError(f"--type is {kind!r}: it must be coco or custom.")


def _read_coco(source: Path) -> tuple[Path, list[Row], list[Refused]]:
    if source.is_file():
        folder, files = source.absolute().parent, [source.absolute()]
    else:
        folder = existing_folder(source)
        files = sorted(folder.glob("annotations/captions_*.json"))
        files = files or sorted(folder.glob("captions_*.json"))
    if not files:
        raise LimnerError(
            f"{folder} has no annotations/captions_*.json. For COCO, give the folder that holds "
            "annotations/ and the picture folders (train2017/, ...), or a captions JSON itself."
        )
    if folder.name == "annotations":  # the JSON was given where COCO has it
        folder = folder.parent
    listing = Listing(folder)
    entries = (entry for file in files for entry in _coco_entries(file, listing))
    rows, refused = collect(entries, folder)
    require_rows(rows, refused, folder)
    return folder, rows, refused


def _coco_entries(file: Path, listing: Listing) -> Iterator[Entry]:
    """One entry per picture of a captions file (https://cocodataset.org/#format-data)."""
    data = parse_json(read_text(file), file)
    try:
        names = {image["id"]: image["file_name"] for image in data["images"]}
        captions: dict[Any, list[Any]] = defaultdict(list)
        for annotation in data["annotations"]:
            captions[annotation["image_id"]].append(annotation["caption"])
    except (KeyError, TypeError) as error:
        raise LimnerError(
            f"{file} is not a COCO captions file: {error}. It must hold "
            '{"images": [{"id", "file_name"}, ...], "annotations": [{"image_id", "caption"}, ...]}.'
        ) from error
    split = file.stem.removeprefix("captions_")
    places = (split, f"images/{split}", "images", "", file.parent.name)
    for identity in names | captions:
        name = names.get(identity)
        key = name
        if isinstance(name, str):
            found = (f"{place}/{name}".lstrip("/") for place in places)
            key = next((path for path in found if not listing.missing(path)), f"{split}/{name}")
        yield Entry(f"{file.name}, image {identity}", key, captions.get(identity, []))


def _copy(path: Path, key: str, staging: Path, number: int) -> str:
    """Writes one verified picture; its path within the data set. Raises PictureError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PictureError(f"{key}: the file cannot be read ({error.strerror}).") from error
    picture = open_rgb(data, key)
    extension = _extension_to_keep(data)
    name = f"images/image_{number:06d}{extension or '.png'}"
    if extension:
        (staging / name).write_bytes(data)
    else:
        picture.save(staging / name, icc_profile=None)  # it may be that of another colour space
    return name


def _extension_to_keep(data: bytes) -> str | None:
    """The extension of a file that every program reads alike, None for one to be written anew."""
    with Image.open(io.BytesIO(data)) as image:
        if image.mode not in ("RGB", "L") or image.has_transparency_data:
            return None
        return {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png"}.get(image.format or "")


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
