"""COCO captions: annotations/captions_*.json and the picture folders, as downloaded."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from limner.data.dataset import require_rows
from limner.data.formats.encodings import Guesses
from limner.data.formats.entries import BY_HASH, Entry, Found, collect
from limner.data.formats.options import ReadOptions
from limner.data.formats.text_files import existing_folder, parse_json, read_text
from limner.data.image_paths import ImagePaths
from limner.errors import LimnerError


def coco_files(folder: Path) -> list[Path]:
    """The captions files of a folder, sorted: in annotations/, or else in the folder itself."""
    found = sorted(folder.glob("annotations/captions_*.json"))
    return found or sorted(folder.glob("captions_*.json"))


def read_coco(source: Path, options: ReadOptions) -> Found:
    """A folder as COCO has it, or one captions JSON of any name with the pictures near it.

    Where captions of train and of val pictures are both there, val is held out.
    """
    if source.is_file():
        folder, files = source.absolute().parent, [source.absolute()]
    else:
        folder = existing_folder(source)
        files = coco_files(folder)
    if not files:
        raise LimnerError(
            f"{folder} has no annotations/captions_*.json. For COCO, use the folder that contains "
            "annotations/ and the picture folders (train2017/, ...), or a captions JSON file."
        )
    if folder.name == "annotations":  # the JSON was given where COCO has it
        folder = folder.parent
    splits = {file: file.stem.removeprefix("captions_") for file in files}
    parts = {split[:3] for split in splits.values()}
    both = {"tra", "val"} <= parts
    paths, guesses = ImagePaths(folder, options.allowed), Guesses()
    entries = (
        entry
        for file, split in splits.items()
        for entry in _entries(
            read_text(file, options.encoding, guesses),
            file,
            split,
            split.startswith("val") if both else None,
            paths,
        )
    )
    rows, refused = collect(entries, folder, options.allowed)
    require_rows(rows, refused, folder)
    layout = f"COCO captions of {', '.join(file.name for file in files)}"
    held_out = [split for split in splits.values() if split.startswith("val")]
    rule = f"Held out: all of {', '.join(held_out)}." if both else BY_HASH
    return Found(layout, folder, rows, refused, rule, (str(guesses),) if str(guesses) else ())


def _entries(
    text: str, file: Path, split: str, held_out: bool | None, paths: ImagePaths
) -> Iterator[Entry]:
    """One entry per picture of a captions file (https://cocodataset.org/#format-data)."""
    data = parse_json(text, file)
    try:
        names = {image["id"]: image["file_name"] for image in data["images"]}
        captions: dict[Any, list[Any]] = defaultdict(list)
        for annotation in data["annotations"]:
            captions[annotation["image_id"]].append(annotation["caption"])
    except (KeyError, TypeError) as error:
        raise LimnerError(
            f'{file} is not a COCO captions file: {error}. It must contain {{"images": [{{"id", '
            '"file_name"}, ...], "annotations": [{"image_id", "caption"}, ...]}.'
        ) from error
    places = (split, f"images/{split}", "images", "", file.parent.name)
    for identity in names | captions:
        name = names.get(identity)
        key = name
        if isinstance(name, str) and not os.path.isabs(name):
            found = (f"{place}/{name}".lstrip("/") for place in places)
            key = next((path for path in found if not paths.find(path)[1]), f"{split}/{name}")
        place = f"{file.name}, image {identity}"
        yield Entry(place, key, captions.get(identity, []), None, held_out)
