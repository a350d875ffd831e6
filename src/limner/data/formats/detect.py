"""Which format people's data is in, found by looking at names: the first that fits, in this order.

A file counts by its ending. A folder is, in this order,

1. `folder`      if it holds metadata.json, .jsonl, .csv, or .parquet
2. `datasets`    if `save_to_disk` of the package datasets wrote it
3. `coco`        if it holds annotations/captions_*.json, or captions_*.json
4. `cub`         if it holds images.txt and images/, or CUB_200_2011/ with these
5. `webdataset`  if it holds .tar files
6. `table`       if exactly one table in it has columns that are known for pictures and captions
7. `parquet`     if it, or data/ in it, holds Parquet with the pictures inside
8. `folder`      if any picture has a .txt beside it
9. `classes`     if all pictures lie in folders of several names that may be captions
"""

from __future__ import annotations

import os
from pathlib import Path

from limner.data import images
from limner.data.folder_walk import FolderWalk, by_stem, composed
from limner.data.formats.classes import are_classes
from limner.data.formats.coco import coco_files
from limner.data.formats.columns import Columns
from limner.data.formats.cub import cub_folder
from limner.data.formats.tables import TABLES, has_columns, parquet_holds_bytes
from limner.data.formats.text_files import existing_folder, parse_json, read_text
from limner.errors import LimnerError
from limner.files.output_folders import output_around
from limner.files.system_names import is_system_name

METADATA = ("metadata.json", "metadata.jsonl", "metadata.csv", "metadata.parquet")

LAYOUTS = """\
  1. metadata.json: [{"image": "images/image_000001.jpg", "text": "a red apple"}, ...]
  2. metadata.jsonl, one {"file_name": "0001.jpg", "text": "a red apple"} a line, or metadata.csv
     or metadata.parquet with the columns file_name and text (Hugging Face imagefolder)
  3. one table of any name (.csv, .tsv, .jsonl, .parquet) with such columns
  4. apple.jpg with its caption in apple.txt beside it, in any subfolder
  5. red_apple/0001.jpg: folders of several names, which are the captions
  6. COCO (annotations/captions_*.json) or CUB-200-2011 (images.txt), as they are downloaded
  7. what the package datasets saved (save_to_disk), Parquet with the pictures in it, or .tar shards
data.format chooses one of them where looking does not find it (docs/data.md)."""


def recognise(path: Path, columns: Columns) -> str:
    """The format (a value of `data.format`) of what is there. Raises LimnerError if it is none."""
    path = path.expanduser().absolute()
    if path.is_file():
        return _of_file(path, columns)
    folder = existing_folder(path)
    if found := output_around(folder):
        kind, place = found
        holds = "holds" if place == Path(os.path.realpath(folder)) else "is part of"
        raise LimnerError(
            f"{folder} {holds} {kind} of Limner's, which is not read as data. Name the folder that "
            "your pictures are in (data.dataset_path); data.format reads even this one as what it "
            "says."
        )
    if any((folder / name).is_file() for name in METADATA):
        return "folder"
    if (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    ):
        return "datasets"
    if coco_files(folder):
        return "coco"
    if cub_folder(folder):
        return "cub"
    if _files(folder, ".tar"):
        return "webdataset"
    if table_in(folder, columns):
        return "table"
    if _parquet_with_pictures(folder, columns):
        return "parquet"
    if _any_caption_beside(folder):
        return "folder"
    if are_classes(folder):
        return "classes"
    raise unknown(folder)


def table_in(folder: Path, columns: Columns) -> Path | None:
    """The one table in a folder whose columns are known. Raises LimnerError if there are more."""
    found = _files(folder, *TABLES)
    tables = [path for path in found if _is_table(path, columns)]
    if len(tables) > 1:
        raise LimnerError(
            f"{folder} holds {len(tables)} tables with a picture's and a caption's column: "
            f"{', '.join(path.name for path in tables[:5])}; set data.dataset_path to one of them"
        )
    return tables[0] if tables else None


def unknown(folder: Path) -> LimnerError:
    """The error where nothing fits: what was found, and what is known."""
    return LimnerError(
        f"{folder} has no layout that is known here{_hint(folder)}. One of these is needed:\n"
        f"{LAYOUTS}"
    )


def _of_file(path: Path, columns: Columns) -> str:
    ending = path.suffix.lower()
    if ending == ".tar":
        return "webdataset"
    if ending == ".parquet":
        return "parquet" if parquet_holds_bytes(path, columns) else "table"
    if ending == ".json":
        return "coco" if isinstance(parse_json(read_text(path), path), dict) else "table"
    if ending in TABLES:
        return "table"
    raise LimnerError(
        f"{path} is a file of a kind that is not known here. Give the folder it is in, "
        f"{path.parent}, or a file that ends with {', '.join(TABLES)} or .tar."
    )


def _files(folder: Path, *endings: str) -> list[Path]:
    """Files in a folder whose names end so, sorted; not those of systems, such as the ._a.csv that
    macOS puts beside a.csv on other systems' drives."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(endings) and not is_system_name(path.name) and path.is_file()
    )


def _is_table(path: Path, columns: Columns) -> bool:
    ending = path.suffix.lower()
    if ending == ".txt" and path.name.lower() != "captions.txt":  # Flickr8k's is one
        return False
    if ending in (".json", ".jsonl"):
        return ending == ".jsonl" and _objects_with_columns(path, columns)
    if not has_columns(path, columns):
        return False
    return ending != ".parquet" or not parquet_holds_bytes(path, columns)


def _objects_with_columns(path: Path, columns: Columns) -> bool:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        line = file.readline(1_000_000)
    try:
        row = parse_json(line, path)
    except LimnerError:
        return False
    return isinstance(row, dict) and columns.choose(list(row)).missing(row) is None


def _parquet_with_pictures(folder: Path, columns: Columns) -> bool:
    for place in (folder, folder / "data"):
        if found := _files(place, ".parquet"):
            return parquet_holds_bytes(found[0], columns)
    return False


def _any_caption_beside(folder: Path) -> bool:
    """Whether any picture has a .txt of its name beside it."""
    for _, _, names in FolderWalk(folder):
        texts = by_stem(names, ".txt")
        for name in names:
            stem, extension = os.path.splitext(name)
            if composed(stem) in texts and extension.lower() in images.EXTENSIONS:
                return True
    return False


def _hint(folder: Path) -> str:
    """What was found instead: metadata one level down, or pictures without captions."""
    for name in METADATA:
        inner = next(folder.glob(f"*/{name}"), None)
        if inner:
            return f" (but {inner.parent} has a {name}: give that folder)"
    bare = sum(
        os.path.splitext(name)[1].lower() in images.EXTENSIONS
        for _, _, names in FolderWalk(folder)
        for name in names
    )
    if not bare:
        return ""
    tables = [path.name for path in _files(folder, *TABLES)]
    named = f", and {', '.join(tables[:3])} with columns that are not known" if tables else ""
    return f" (it has {bare:,} pictures, none with a caption{named})"
