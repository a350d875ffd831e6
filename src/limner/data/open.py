"""Open the configured data set, with its held-out split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from limner.config import Config
from limner.config.defaults import changed
from limner.data.buckets import Buckets, nearest, sizes_around, told, with_enough
from limner.data.dataset import ImageDataset, RowSubset, Streamed
from limner.data.examples import DecodedImages
from limner.data.image_sizes import shapes_of
from limner.data.order import FullShuffle, OneShapePerUpdate, Order
from limner.data.own_folder import cache_may_begin
from limner.data.split import split_rows
from limner.data.streaming.remote_files import of_shards
from limner.data.streaming.window_shuffle import WINDOW, WindowedShuffle
from limner.data.verify import remove_undecodable
from limner.errors import LimnerError


@dataclass(frozen=True)
class Data:
    """A data set, split: what is trained on and what is only looked at."""

    set: ImageDataset
    trained: DecodedImages
    held_out: DecodedImages
    notes: tuple[str, ...] = ()
    """What people should know of it at the start of a run."""
    refused: int = 0
    """Rows that could not be used when it was opened; those found later are rows of the set."""


def open_image_dataset(config: Config) -> ImageDataset:
    """Open the data set of `data.dataset_name` or `data.dataset_path`."""
    # Imported here so that a folder needs none of the built-in sets' packages, and the reverse.
    name = (config.data.dataset_name or "").lower()
    if name == "emoji":
        from limner.data.builtin.emoji import EmojiImages

        return EmojiImages(config.data.subset, config.data.languages)
    if name == "shapes":
        from limner.data.builtin.shapes import ShapesImages

        return ShapesImages(config.data.num_samples or 4000)
    return _open_format(config)


def _open_format(config: Config) -> ImageDataset:
    """People's own data: in the format that is named, or that looking finds."""
    kind, path = _format_and_path(config)
    if kind == "datasets" and config.data.streaming and path == config.data.dataset_name:
        from limner.data.formats.hub_streaming import open_streamed

        return open_streamed(config)
    if kind == "datasets":
        from limner.data.formats.hub import open_datasets

        return open_datasets(config)
    if kind == "webdataset":
        from limner.data.formats.webdataset import open_tars

        return open_tars(config)
    if kind == "parquet":
        from limner.data.formats.parquet import open_parquet

        return open_parquet(config)
    from limner.data.formats.folders import FolderImages
    from limner.data.formats.options import ReadOptions

    return FolderImages(path, options=ReadOptions.of(config), kind=kind)


def _format_and_path(config: Config) -> tuple[str, str]:
    data = config.data
    name = data.dataset_name or ""
    kind: str = data.format
    # Configurations of others name the kind of their data here, and have its place in the path.
    if name.lower() in ("coco", "cub"):
        kind = name.lower() if kind == "auto" else kind
    elif "/" in name and kind in ("auto", "datasets"):
        return "datasets", name
    elif name.lower() not in ("", "folder", "custom", "local", "imagefolder"):
        raise LimnerError(
            f"data.dataset_name: {name!r} is neither emoji nor shapes, nor a Hub id of the form "
            "org/name; for your own pictures, remove it and set data.dataset_path"
        )
    if kind == "auto":
        kind = of_shards(data.dataset_path) or kind
    if kind == "auto":
        from limner.data.formats.columns import Columns
        from limner.data.formats.detect import recognise

        kind = recognise(Path(data.dataset_path), Columns.of(config), data.encoding)
    return kind, data.dataset_path


def open_data(config: Config, unit: int = 1) -> Data:
    """The data set, without what cannot be used, and its split.

    Args:
        unit: pixels of one of the model's patches, of which sizes of buckets are multiples.
    """
    dataset = open_image_dataset(config)
    if config.data.check_pictures:
        remove_undecodable(dataset, config)
    trained, held_out = split_rows(dataset.rows, config.data.train_split, config.data.num_samples)

    # In latent space the pictures are seen once; what is read again and again are their latents.
    memory_mb = 0 if config.vae.pretrained_model_name else config.data.memory_mb

    buckets, notes = in_buckets(dataset, trained, config, unit)

    def images(positions: np.ndarray) -> DecodedImages:
        rows = RowSubset(dataset.rows, positions)
        theirs = buckets and buckets.only(positions)
        return DecodedImages(dataset, rows, config.data.image_size, memory_mb, theirs)

    both = images(trained), images(held_out)
    if any(some.crowded for some in both):
        notes = [
            *notes,
            "not enough shared memory to keep the decoded pictures, so they are decoded each time; "
            "use docker run --shm-size=8g for more, or data.memory_mb=0 for none",
        ]
    return Data(dataset, *both, tuple(notes), len(dataset.refused))


def in_buckets(
    dataset: ImageDataset,
    trained: np.ndarray,
    config: Config,
    unit: int,
) -> tuple[Buckets | None, list[str]]:
    """The size of each row, if `data.buckets` asks for several (`auto` chooses them by those that
    are trained), and what is to be said of them."""
    wanted, side = config.data.buckets, config.data.image_size
    if wanted is None:
        return None, []
    if isinstance(dataset, Streamed) and dataset.windowed:
        raise LimnerError(
            "data.buckets: not supported with streaming, since the sizes of streamed pictures are "
            "not known in advance; copy the shards to this machine (local tars work), or remove it"
        )
    cache = Path(config.cache.folder) if cache_may_begin(config) else None
    shapes = shapes_of(dataset, dataset.rows, cache)
    own = shapes[trained]
    if wanted == "auto":
        sizes = with_enough(own, sizes_around(side, unit, config.data.max_aspect_ratio))
    else:
        sizes = list(wanted)
    buckets = Buckets(tuple(sizes), nearest(shapes, sizes))
    return buckets, told(buckets.only(trained), own, side)


def squares(config: Config) -> Config:
    """The same without buckets: for what looks at squares, however the model was trained."""
    return changed(config, data=changed(config.data, buckets=None))


def with_buckets(config: Config, data: Data) -> Config:
    """The configuration with the sizes that `auto` found, as a run and its checkpoints keep it."""
    if config.data.buckets != "auto" or data.trained.buckets is None:
        return config
    return changed(config, data=changed(config.data, buckets=data.trained.buckets.sizes))


def training_order(data: Data, config: Config, processes: int = 1, images: int = 0) -> Order:
    """The order of the training rows, as a function of the image count.

    Args:
        processes: number of processes that share an update.
        images: image count at which the run continues.
    """
    if (buckets := data.trained.buckets) is not None:
        settings = config.training
        group = settings.micro_batch_size * settings.gradient_accumulation_steps * processes
        members = buckets.members()
        return OneShapePerUpdate(members, group, settings.seed, images % group)
    rows, seed = data.trained.rows, config.training.seed
    # Latents are kept here, one by one, wherever the pictures are.
    stored = config.vae.pretrained_model_name is not None
    if (
        isinstance(data.set, Streamed)
        and data.set.windowed
        and isinstance(rows, RowSubset)
        and not stored
    ):
        firsts = data.set.piece_firsts(rows.positions)
        window = config.data.shuffle_window or WINDOW
        return WindowedShuffle(firsts, window, seed, data.set.fetch_ahead)
    return FullShuffle(len(rows), seed)
