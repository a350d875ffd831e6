"""The same few emoji, in English and Chinese, in every shape in which people have data."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from limner.data.builtin.emoji import EmojiImages

COUNT, SIDE = 24, 16


@dataclass(frozen=True)
class Emoji:
    """One picture as it is written: every third a JPEG."""

    name: str
    data: bytes
    captions: tuple[str, ...]

    @property
    def pixels(self) -> np.ndarray:
        return np.array(Image.open(io.BytesIO(self.data)).convert("RGB"))


@cache
def emoji(count: int = COUNT) -> tuple[Emoji, ...]:
    """Pictures of SIDE pixels, each with at least two captions; the last is Chinese."""
    drawn = EmojiImages("demo", ("en", "zh"))
    made = []
    for number, row in enumerate(drawn.rows[:count]):
        kind = ("JPEG", "jpg") if number % 3 == 2 else ("PNG", "png")
        data = io.BytesIO()
        Image.fromarray(drawn.load(row, SIDE)).save(data, kind[0])
        captions = (row.captions[0], row.captions[-1])
        made.append(Emoji(f"{row.key}.{kind[1]}", data.getvalue(), captions))
    return tuple(sorted(made, key=lambda one: one.name))  # as a folder lists them


def files(folder: Path, within: str = "images") -> Path:
    """The pictures as files."""
    (folder / within).mkdir(parents=True, exist_ok=True)
    for one in emoji():
        (folder / within / one.name).write_bytes(one.data)
    return folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")


def metadata_json(folder: Path) -> Path:
    rows = [{"image": f"images/{e.name}", "text": list(e.captions)} for e in emoji()]
    write(files(folder) / "metadata.json", json.dumps(rows, ensure_ascii=False))
    return folder


def metadata_jsonl(folder: Path) -> Path:
    """Two columns of captions, which have to be named."""
    lines = [
        {"file_name": f"images/{e.name}", "english": e.captions[0], "chinese": e.captions[1]}
        for e in emoji()
    ]
    write(files(folder) / "metadata.jsonl", "\n".join(map(json.dumps, lines)))
    return folder


def metadata_csv(folder: Path) -> Path:
    """A row for each caption."""
    rows = [["file_name", "text"]]
    rows += [[f"images/{e.name}", text] for e in emoji() for text in e.captions]
    write(files(folder) / "metadata.csv", _csv(rows, ","))
    return folder


def pairs(folder: Path) -> Path:
    """One caption in the .txt, all of them in a .json beside it."""
    for e in emoji():
        stem = files(folder) / "images" / e.name
        write(stem.with_suffix(".txt"), e.captions[0] + "\n")
        write(stem.with_suffix(".json"), json.dumps({"captions": e.captions}))
    return folder


def table_csv(folder: Path) -> Path:
    """A list in a cell, as pandas writes it."""
    rows = [["id", "Path", "Caption"]]
    rows += [[str(i), f"images/{e.name}", str(list(e.captions))] for i, e in enumerate(emoji())]
    write(files(folder) / "emoji.csv", _csv(rows, ","))
    return folder / "emoji.csv"


def table_tsv(folder: Path) -> Path:
    rows = [["caption", "filepath"]]
    rows += [[text, f"images/{e.name}"] for e in emoji() for text in e.captions]
    write(files(folder) / "emoji.tsv", _csv(rows, "\t"))
    return folder


def table_parquet(folder: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    rows = [{"file_name": f"images/{e.name}", "captions": list(e.captions)} for e in emoji()]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, files(folder) / "emoji.parquet", row_group_size=7)
    return folder


def coco(folder: Path) -> Path:
    """The first 16 in train2017, the others in val2017."""
    for split, first, last in (("train2017", 0, 16), ("val2017", 16, COUNT)):
        some = emoji()[first:last]
        (folder / split).mkdir(parents=True)
        for e in some:
            (folder / split / e.name).write_bytes(e.data)
        data = {
            "images": [{"id": i, "file_name": e.name} for i, e in enumerate(some)],
            "annotations": [
                {"id": 10 * i + j, "image_id": i, "caption": text}
                for i, e in enumerate(some)
                for j, text in enumerate(e.captions)
            ],
        }
        write(folder / f"annotations/captions_{split}.json", json.dumps(data))
    return folder


def cub(folder: Path) -> Path:
    """Two classes; every fourth picture is of the test split."""
    names = [f"{1 + i % 2:03}.Class_{i % 2}/{e.name}" for i, e in enumerate(emoji())]
    for name, e in zip(names, emoji(), strict=True):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(e.data)
        text = folder / "cvpr2016_cub/text_c10" / name
        write(text.with_suffix(".txt"), "\n".join([*e.captions, e.captions[0], ""]))
    write(folder / "images.txt", "".join(f"{i} {name}\n" for i, name in enumerate(names, 1)))
    split = "".join(f"{i} {int(i % 4 != 0)}\n" for i in range(1, len(names) + 1))
    write(folder / "train_test_split.txt", split)
    return folder


def saved(folder: Path) -> Path:
    """What `save_to_disk` of the package datasets writes."""
    import datasets

    rows = {
        "image": [{"bytes": e.data, "path": e.name} for e in emoji()],
        "captions": [list(e.captions) for e in emoji()],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "captions": datasets.List(datasets.Value("string"))}
    )
    datasets.Dataset.from_dict(rows, features).save_to_disk(str(folder))
    return folder


def tars(folder: Path) -> Path:
    """Two shards: one with a .txt and all captions in a .json, one with the .json alone."""
    import tarfile

    folder.mkdir(parents=True)
    for shard, some in enumerate((emoji()[:13], emoji()[13:])):
        path = folder / f"emoji-{shard:03}.tar"
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
            for e in some:
                stem, _, ending = e.name.rpartition(".")
                members = [
                    (ending, e.data),
                    ("json", json.dumps({"captions": e.captions}).encode()),
                ]
                members += [("txt", e.captions[0].encode())] if shard == 0 else []
                for last, data in members:
                    about = tarfile.TarInfo(f"emoji/{stem}.{last}")
                    about.size = len(data)
                    tar.addfile(about, io.BytesIO(data))
    return folder


def parquet_of_bytes(folder: Path) -> Path:
    """As sets on the Hub are stored: a struct of the bytes and a name, in row groups."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True)
    rows = [
        {"image": {"bytes": e.data, "path": e.name}, "captions": list(e.captions)} for e in emoji()
    ]
    for shard, some in enumerate((rows[:13], rows[13:])):
        path = folder / f"train-{shard:05}-of-00002.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(some), path, row_group_size=5)
    return folder


@dataclass(frozen=True)
class Example:
    """A way to write the emoji, and what a configuration needs to read them.

    Attributes:
        kind: the format that looking must find.
        settings: besides data.dataset_path.
        held_out: the places among `emoji()` that the format holds out itself.
        key: what the row of a picture is called, without folders, by its place.
        windowed: it is read in pieces, and its order is another one.
    """

    build: Callable[[Path], Path]
    kind: str
    settings: tuple[str, ...] = ()
    held_out: frozenset[int] | None = None
    key: Callable[[int], str] = lambda place: emoji()[place].name
    windowed: bool = False


EXAMPLES = {
    "metadata.json": Example(metadata_json, "folder"),
    "metadata.jsonl": Example(
        metadata_jsonl, "folder", ("data.caption_column=[english, chinese]",)
    ),
    "metadata.csv": Example(metadata_csv, "folder"),
    "pairs": Example(pairs, "folder"),
    "csv": Example(table_csv, "table"),
    "tsv": Example(table_tsv, "table"),
    "parquet of paths": Example(table_parquet, "table"),
    "coco": Example(coco, "coco", (), frozenset(range(16, COUNT))),
    "cub": Example(cub, "cub", (), frozenset(range(3, COUNT, 4))),
    "save_to_disk": Example(saved, "datasets"),
    "tars": Example(tars, "webdataset", key=lambda place: emoji()[place].name.rpartition(".")[0]),
    "parquet of pictures": Example(
        parquet_of_bytes,
        "parquet",
        key=lambda place: str(place if place < 13 else place - 13),
        windowed=True,
    ),
}
"""Every format that keeps all captions, and so the same rows; `classes` keeps one for each
folder."""


def settings(name: str, folder: Path) -> list[str]:
    """The overrides with which a configuration reads an example, once it is written there."""
    path = EXAMPLES[name].build(folder)
    return [
        "data.dataset_name=null",
        "data.num_samples=null",
        f"data.dataset_path='{path}'",
        *EXAMPLES[name].settings,
    ]


def _csv(rows: list[list[Any]], separator: str) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator).writerows(rows)
    return text.getvalue()
