"""Stream a data set from the Hub: its Parquet or tar files are read as remote shards.

Nothing of the set is run, and nothing but what is learned from is downloaded: the index needs the
captions' columns, training the pictures, piece by piece.
"""

from __future__ import annotations

import re

from limner.config import Config
from limner.data.formats.parquet import open_parquet_files
from limner.data.formats.webdataset import open_tar_files
from limner.data.streaming.remote_files import find, patiently
from limner.data.streaming.sharded_dataset import ShardImages
from limner.errors import LimnerError

CONVERTED = "@refs%2Fconvert%2Fparquet"
"""The branch in which the Hub keeps most data sets as Parquet, whatever they were uploaded as."""


def open_streamed(config: Config) -> ShardImages:
    """The set that `data.dataset_name` names on the Hub, its `data.dataset_config` and
    `data.dataset_split`. Raises LimnerError."""
    name = config.data.dataset_name
    assert name
    for place in (f"datasets/{name}", f"datasets/{name}{CONVERTED}"):
        files = _files(name, place)
        for ending in (".parquet", ".tar"):
            if chosen := _chosen([f for f in files if f.lower().endswith(ending)], config):
                urls = [f"hf://{file}" for file in chosen]
                if ending == ".tar":
                    return open_tar_files(config, urls, name)
                return open_parquet_files(config, find(urls, (ending,)), name)
    raise LimnerError(
        f"data.dataset_name: {name} has neither Parquet files nor tars of the split "
        f"{config.data.dataset_split!r} (data.dataset_split, data.dataset_config) that could be "
        "streamed; set data.streaming=false to download it in any format"
    )


def _files(name: str, place: str) -> list[str]:
    from huggingface_hub import HfFileSystem

    try:
        return sorted(patiently(f"hf://{place}", lambda: HfFileSystem().find(place)))
    except FileNotFoundError:  # there is no such branch, or no such set
        return []


def _chosen(files: list[str], config: Config) -> list[str]:
    """Those of the configuration and the split that are asked for, by their names, as the Hub's own
    rules have it: `train-00000-of-00004.parquet`, `train/0000.parquet`, `data/train.tar`. A set
    whose files name no split has only a training split."""
    data = config.data
    if data.dataset_config:
        files = [file for file in files if data.dataset_config in re.split(r"[/]", file)[:-1]]
    splits = {file: _splits_in(file) for file in files}
    if not any(splits.values()):
        return files if data.dataset_split == "train" else []
    return [file for file in files if data.dataset_split in splits[file]]


def _splits_in(file: str) -> set[str]:
    """The words of a path within the set that may name a split."""
    words = {word for part in file.split("/")[3:] for word in re.split(r"[^A-Za-z]+", part)}
    known = {"train", "test", "validation", "valid", "val", "dev", "eval", "training", "testing"}
    return (words & known) | {m[1] for m in [re.match(r"(\w+)-\d{5}-of", file.split("/")[-1])] if m}
