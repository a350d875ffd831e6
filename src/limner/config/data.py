"""What is learned from: pictures and captions, and where what is computed from them is kept."""

from __future__ import annotations

import codecs
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from limner.config.types import Count, Number, PositiveInt, PositiveShare, Section, Share, Side


def auto_or_sizes(value: Any) -> Any:
    """true and false mean what they say; another word than auto is none."""
    if isinstance(value, bool):
        return "auto" if value else None
    if isinstance(value, str) and value.lower() != "auto":
        raise PydanticCustomError("buckets", "auto, or sizes as in [[64, 48], [48, 64]],")
    return value.lower() if isinstance(value, str) else value


def _encoding(value: str | None) -> str | None:
    """The name of a codec for text; base64 and such are none."""
    if value is None:
        return None
    try:
        if isinstance(b"a".decode(codecs.lookup(value).name, errors="replace"), str):
            return value
    except (LookupError, ValueError, UnicodeError):
        pass
    raise PydanticCustomError(
        "encoding", "the name of an encoding, such as utf-8, gb18030, big5, cp932, or cp1252,"
    )


Format = Literal[
    "auto", "folder", "classes", "table", "coco", "cub", "datasets", "webdataset", "parquet"
]


class DataConfig(Section):
    dataset_name: str | None = None
    """`emoji` or `shapes` (built in), or the Hub id of a data set (org/name), which the package
    datasets reads; None: what is at `dataset_path`."""
    dataset_path: str = "./data"
    """Folder or file of your own data; how it is laid out is found by looking (docs/data.md)."""
    format: Format = "auto"
    """What is at `dataset_path`, where looking is not enough. folder: metadata.json, .jsonl, .csv,
    or pairs of picture and .txt; classes: folders whose names are the captions; table: a CSV, TSV,
    JSON or Parquet file with a column of paths; datasets: whatever the package datasets reads."""
    image_column: str | None = None
    """Column (or key) of the picture; None: image, file_name, ... whichever is there."""
    caption_column: str | tuple[str, ...] | None = None
    """Column of the captions, or several of them, the main one first; None: text, caption, ...
    whichever is there. A list in a cell is several captions."""
    allowed_paths: str | tuple[str, ...] | None = None
    """Folders outside of the data's own that the paths of its pictures may lead to; None: absolute
    paths and `..` that lead out of it are refused (docs/data.md)."""
    encoding: Annotated[str | None, AfterValidator(_encoding)] = None
    """Of text files (captions, tables) that are not UTF-8, such as gb18030, big5, cp932, cp1252;
    None: found where it is certain, else the rows are refused (docs/data.md)."""
    dataset_config: str | None = None
    """Of a data set on the Hub: which of its configurations; None: its only one, or its default."""
    dataset_split: str = "train"
    """Of what the package datasets reads: the split, as in `train` or `train[:1000]`."""
    streaming: bool = False
    """Read the Parquet files or tars of a data set on the Hub from where they are, piece by piece,
    instead of downloading all of them first (docs/streaming.md)."""
    shuffle_window: Annotated[PositiveInt, Field(le=2**24)] | None = None
    """Of data that is fetched piece by piece: pictures that are shuffled together, about; None:
    4,096, and all of them where the tars are on this machine."""
    image_size: Side = 64
    """Side of the square training picture, pixels."""
    buckets: Annotated[
        Literal["auto"] | Annotated[tuple[tuple[Side, Side], ...], Field(max_length=1_024)] | None,
        BeforeValidator(auto_or_sizes),
    ] = None
    """None: every picture is cropped to a square. `auto`: pictures are trained at sizes of several
    shapes, each of about `image_size` squared pixels, so that little is cut off; or the sizes, as
    [[height, width], ...]. A checkpoint's configuration holds those that `auto` found."""
    max_aspect_ratio: Annotated[Number, Field(ge=1, le=8)] = 2.0
    """Of `buckets: auto`: longer over shorter side, at most; what is longer is cut to that."""
    num_samples: PositiveInt | None = None
    """Use at most this many rows (a stable choice by hash); None: all."""
    train_split: PositiveShare = 0.95
    """Share of rows trained on, by a hash of each row's key; the rest is held out.
    `emoji` and `shapes` have a split of their own and ignore it."""
    subset: Literal["demo", "all"] = "all"
    """Of `emoji`: about 330 pictures for the demo, or all of them."""
    languages: tuple[str, ...] = ("en", "zh")
    """Of `emoji`: the languages of the names."""
    check_pictures: bool = True
    """Decode every picture of a folder once before the first step (of many pictures, only those
    that are new: `cache.folder` remembers), so that bad ones change the order of none. false: bad
    ones are found on the way, and the next in the list stands in."""
    refused_limit: Share = 0.5
    """The run ends when more than this share of the rows cannot be used; they are listed."""
    main_caption_share: Share = 0.5
    """How often a row of several captions is trained with its first; the others share the rest."""
    memory_mb: Count = 512
    """Keep decoded pictures in shared memory if all fit in so many MiB; else decode each time."""
    horizontal_flip: Share = 0.0
    """Share of pictures mirrored in training. 0 by default: captions say left and right."""


class CacheConfig(Section):
    folder: str = "./cache"
    """Where latents and text embeddings are kept, computed once; runs share it."""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """In which precision they are kept."""
    pieces_mb: PositiveInt = 4096
    """MiB that pieces of shards, fetched from far away or unpacked, take in `folder` at most."""
