"""Detect the format of a data set from its file names: the first match, in a fixed order.

A file counts by its ending. A folder is, in this order,

1. `folder`      if it holds metadata.json, .jsonl, .csv, or .parquet
2. `datasets`    if `save_to_disk` of the package datasets wrote it
3. `coco`        if it holds annotations/captions_*.json, or captions_*.json
4. `cub`         if it holds images.txt and images/, or CUB_200_2011/ with these
5. `webdataset`  if it holds .tar files
6. `table`       if exactly one table in it has columns that are known for pictures and captions
7. `parquet`     if it, or data/ in it, holds Parquet with the pictures inside
8. `folder`      if any picture has a .txt or .caption beside it
9. `table`       if exactly one .json in it is a list of rows with such columns: later than the
                 others, as programs leave lists beside pictures that have captions
10. `classes`    if all pictures lie in folders of several names that may be captions
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from limner.data import images
from limner.data.folder_walk import FolderWalk, caption_files, composed
from limner.data.formats.classes import are_classes
from limner.data.formats.coco import coco_files
from limner.data.formats.columns import Columns
from limner.data.formats.cub import cub_folder
from limner.data.formats.tables import TABLES, has_columns, parquet_holds_bytes
from limner.data.formats.text_files import beginning, existing_folder, parse_json, read_text
from limner.errors import LimnerError
from limner.files.output_folders import output_around
from limner.files.system_names import is_system_name
from limner.messages import shorten_name

METADATA = ("metadata.json", "metadata.jsonl", "metadata.csv", "metadata.parquet")

_LINES = 100
"""Of JSON lines that are looked at: the first may be a broken one."""

LAYOUTS = """\
  1. metadata.json: [{"image": "images/image_000001.jpg", "text": "a red apple"}, ...]
  2. metadata.jsonl, one {"file_name": "0001.jpg", "text": "a red apple"} a line, or metadata.csv
     or metadata.parquet with the columns file_name and text (Hugging Face imagefolder)
  3. one table of any name (.csv, .tsv, .jsonl, .json, .parquet) with such columns
  4. apple.jpg with its caption in apple.txt (or apple.caption) beside it, in any subfolder
  5. red_apple/0001.jpg: folders of several names, which are the captions
  6. COCO (annotations/captions_*.json) or CUB-200-2011 (images.txt), as they are downloaded
  7. what the package datasets saved (save_to_disk), Parquet with the pictures in it, or .tar shards
data.format chooses one of them where looking does not find it (docs/data.md)."""


def recognise(path: Path, columns: Columns, encoding: str | None = None) -> str:
    """The format (a value of `data.format`) of what is there. Raises LimnerError if it is none.

    Args:
        encoding: `data.encoding`, of tables whose columns are looked for.
    """
    path = path.expanduser().absolute()
    if path.is_file():
        return _of_file(path, columns, encoding)
    folder = existing_folder(path)
    if found := output_around(folder):
        kind, place = found
        holds = "holds" if place == Path(os.path.realpath(folder)) else "is part of"
        raise LimnerError(
            f"{folder} {holds} {kind} written by Limner, which is not read as data. Set "
            "data.dataset_path to the folder of your pictures, or set data.format to read this one "
            "anyway."
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
    if _one_of(folder, _tables(folder, columns, encoding)):
        return "table"
    if _parquet_with_images(folder, columns):
        return "parquet"
    if _any_caption_beside(folder):
        return "folder"
    if _one_of(folder, _lists(folder, columns, encoding)):
        return "table"
    if are_classes(folder):
        return "classes"
    raise unknown(folder)


def table_in(folder: Path, columns: Columns, encoding: str | None = None) -> Path | None:
    """The one table in a folder whose columns are known. Raises LimnerError if there are more."""
    tables = _tables(folder, columns, encoding) or _lists(folder, columns, encoding)
    return _one_of(folder, tables)


def tables_not_read(folder: Path) -> str:
    """What to say of tables in a folder whose captions are taken from elsewhere; "" of none."""
    if any((folder / name).is_file() for name in METADATA):
        return ""
    names = [path.name for path in _files(folder, ".csv", ".tsv", ".jsonl", ".parquet")]
    if not names:
        return ""
    shown = ", ".join(map(shorten_name, names[:3])) + (", ..." if len(names) > 3 else "")
    return (
        f"Not read: {shown} (if it contains the captions, set data.dataset_path to it, and "
        "data.image_column and data.caption_column to its columns)."
    )


def _one_of(folder: Path, tables: list[Path]) -> Path | None:
    if len(tables) > 1:
        raise LimnerError(
            f"{folder} contains {len(tables)} tables with a picture and a caption column: "
            f"{', '.join(path.name for path in tables[:5])}; set data.dataset_path to one of them"
        )
    return tables[0] if tables else None


def unknown(folder: Path) -> LimnerError:
    """The error where nothing fits: what was found, and what is known."""
    return LimnerError(f"{folder} has no known layout{_hint(folder)}. Use one of these:\n{LAYOUTS}")


def _of_file(path: Path, columns: Columns, encoding: str | None) -> str:
    ending = path.suffix.lower()
    if ending == ".tar":
        return "webdataset"
    if ending == ".parquet":
        return "parquet" if parquet_holds_bytes(path, columns) else "table"
    if ending == ".json":
        text = read_text(path, encoding)
        return "coco" if isinstance(parse_json(text, path), dict) else "table"
    if ending in TABLES:
        return "table"
    raise LimnerError(
        f"{path} is a file of an unknown kind. Use its folder, {path.parent}, or a file that ends "
        f"with {', '.join(TABLES)} or .tar."
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


def _tables(folder: Path, columns: Columns, encoding: str | None) -> list[Path]:
    found = _files(folder, *(ending for ending in TABLES if ending != ".json"))
    return [path for path in found if _is_table(path, columns, encoding)]


def _is_table(path: Path, columns: Columns, encoding: str | None) -> bool:
    ending = path.suffix.lower()
    if ending == ".txt" and path.name.lower() != "captions.txt":  # Flickr8k's is one
        return False
    if ending == ".jsonl":
        lines = beginning(path, encoding).split("\n", _LINES)[:_LINES]
        return any(_has_keys(line, columns) for line in lines)
    if not has_columns(path, columns, encoding):
        return False
    return ending != ".parquet" or not parquet_holds_bytes(path, columns)


def _lists(folder: Path, columns: Columns, encoding: str | None) -> list[Path]:
    """The .json files that begin as a list of rows; they are not parsed to their end."""
    found = []
    for path in _files(folder, ".json"):
        text = beginning(path, encoding).lstrip()
        if text.startswith("[") and _has_keys(text[1:].lstrip(), columns):
            found.append(path)
    return found


def _has_keys(text: str, columns: Columns) -> bool:
    """Whether a text begins with an object that has a picture's and a caption's key."""
    try:
        row, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and columns.choose(list(row)).missing(row) is None


def _parquet_with_images(folder: Path, columns: Columns) -> bool:
    """By the first file that can be read: a damaged one costs its own rows, not all the others."""
    for place in (folder, folder / "data"):
        first = None
        for path in _files(place, ".parquet"):
            try:
                return parquet_holds_bytes(path, columns)
            except LimnerError as error:
                first = first or error
        if first:
            raise first
    return False


def _any_caption_beside(folder: Path) -> bool:
    """Whether any picture has a .txt or .caption of its name beside it."""
    for _, _, names in FolderWalk(folder):
        texts = caption_files(names)
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
            return f" (but {inner.parent} has a {name}; use that folder)"
    bare = sum(
        os.path.splitext(name)[1].lower() in images.EXTENSIONS
        for _, _, names in FolderWalk(folder)
        for name in names
    )
    if not bare:
        return ""
    tables = [path.name for path in _files(folder, *TABLES)]
    named = ""
    if tables:
        named = (
            f", and {', '.join(tables[:3])} with other columns; set data.image_column and "
            "data.caption_column to those of the picture and the caption"
        )
    return f" (it has {bare:,} pictures, none with a caption{named})"
