"""Settings of the training data, and of the cache for precomputed values."""

from __future__ import annotations

import codecs
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from limner.choices import Format
from limner.config.types import Count, Number, PositiveInt, PositiveShare, Section, Share, Side


def auto_or_sizes(value: Any) -> Any:
    """true and false mean what they say; another word than auto is none."""
    if isinstance(value, bool):
        return "auto" if value else None
    if isinstance(value, str) and value.lower() != "auto":
        raise PydanticCustomError("buckets", "auto, or sizes as in [[64, 48], [48, 64]]")
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
        "encoding", "the name of an encoding, such as utf-8, gb18030, big5, cp932, or cp1252"
    )


class DataConfig(Section):
    dataset_name: str | None = None
    """Built-in data set (`emoji` or `shapes`), or the Hub id of a data set (org/name), read with
    the package datasets. None: use `dataset_path`."""
    dataset_path: str = "./data"
    """Folder or file with your own data; the layout is detected automatically (docs/data.md)."""
    format: Format = "auto"
    """Layout of `dataset_path`, if it cannot be detected. folder: metadata.json, .jsonl, .csv, or
    picture and .txt pairs; classes: folders whose names are the captions; table: a CSV, TSV, JSON
    or Parquet file with a column of paths; datasets: anything that the package datasets reads."""
    image_column: str | None = None
    """Column (or key) with the picture. None: image, file_name, or another usual name."""
    caption_column: str | tuple[str, ...] | None = None
    """Column with the caption, or several columns with the main one first. None: text, caption, or
    another usual name. A cell may hold a list of captions."""
    allowed_paths: str | tuple[str, ...] | None = None
    """Folders outside the data folder that picture paths may point to. None: absolute paths and
    `..` that leave the data folder are rejected (docs/data.md)."""
    encoding: Annotated[str | None, AfterValidator(_encoding)] = None
    """Encoding of text files (captions, tables) that are not UTF-8, such as gb18030, big5, cp932,
    or cp1252. None: detected if unambiguous, otherwise the rows are rejected (docs/data.md)."""
    dataset_config: str | None = None
    """Configuration name of a data set on the Hub. None: its only one, or its default."""
    dataset_split: str = "train"
    """Split to read with the package datasets, such as `train` or `train[:1000]`."""
    streaming: bool = False
    """Stream the Parquet or tar files of a Hub data set in pieces instead of downloading all of
    them first (docs/streaming.md)."""
    shuffle_window: Annotated[PositiveInt, Field(le=2**24)] | None = None
    """Approximate size of the shuffle buffer for streamed data, in pictures. None: 4,096, or all
    pictures if the tar files are on this machine."""
    image_size: Side = 64
    """Side of the square training pictures, in pixels."""
    buckets: Annotated[
        Literal["auto"] | Annotated[tuple[tuple[Side, Side], ...], Field(max_length=1_024)] | None,
        BeforeValidator(auto_or_sizes),
    ] = None
    """Aspect ratio buckets. None: every picture is cropped to a square. `auto`: train at several
    aspect ratios, each with about `image_size` squared pixels, so that little is cropped. Or a list
    of sizes, [[height, width], ...]. Checkpoints save the sizes that `auto` chose."""
    max_aspect_ratio: Annotated[Number, Field(ge=1, le=8)] = 2.0
    """For `buckets: auto`: largest ratio of the longer to the shorter side; longer pictures are
    cropped to it."""
    num_samples: PositiveInt | None = None
    """Use at most this many rows (a deterministic choice by hash). None: all."""
    train_split: PositiveShare = 0.95
    """Fraction of rows used for training, chosen by a hash of each row's key; the rest is held out.
    `emoji` and `shapes` have their own split and ignore this."""
    subset: Literal["demo", "all"] = "all"
    """For `emoji`: about 330 pictures (`demo`), or all of them."""
    languages: tuple[str, ...] = ("en", "zh")
    """For `emoji`: languages of the captions."""
    check_pictures: bool = True
    """Decode every picture of a folder once before the first step (in large data sets only new
    ones: `cache.folder` keeps the results), so that broken pictures do not change the order of the
    others. false: a broken picture found during training is replaced by the next one."""
    refused_limit: Share = 0.5
    """Stop the run if more than this fraction of the rows is unusable; unusable rows are listed."""
    main_caption_share: Share = 0.5
    """Probability of using the first caption of a row with several; the others share the rest."""
    memory_mb: Count = 512
    """Cache decoded pictures in shared memory if all fit into this many MiB; otherwise decode them
    each time."""
    horizontal_flip: Share = 0.0
    """Probability of flipping a training picture horizontally. 0 by default, because captions
    mention left and right."""


class CacheConfig(Section):
    folder: str = "./cache"
    """Folder for precomputed latents and text embeddings; shared between runs."""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Precision of the precomputed values."""
    pieces_mb: PositiveInt = 4096
    """Largest size in MiB of downloaded or unpacked pieces of shards in `folder`."""
