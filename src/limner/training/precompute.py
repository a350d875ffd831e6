"""Compute latents and text embeddings once, and keep them in a store."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from limner.config import Config
from limner.console import format_duration, progress_lines
from limner.data.dataset import ImageError, Refused, Row
from limner.data.examples import Source
from limner.data.images import DECODING, Size, height_and_width, to_tensor
from limner.data.open import Data, open_data
from limner.data.own_folder import check_new_cache
from limner.data.precomputed.fill import check_space, fill
from limner.data.precomputed.sources import (
    LatentsInBuckets,
    StoredCaptions,
    StoredLatents,
    caption_id,
    mirrored,
    packed,
)
from limner.data.precomputed.store import Store
from limner.device import choose_device, choose_precision, name_of, part_precision
from limner.files.fingerprints import Fingerprints
from limner.messages import plural
from limner.pretrained.autoencoder import PretrainedAutoencoder
from limner.pretrained.components import open_parts
from limner.pretrained.text_encoder import PretrainedTextEncoder
from limner.training.monitor.previews import preview_prompts

AT_ONCE = 8
"""Pictures per autoencoder batch; one at a time if memory is short."""


CAPTIONS_AT_ONCE = 32


MOST_ROWS, MOST_BYTES = 4096, 2**28
"""Upper bounds on a shard, which is held in memory while it is written."""


ROW_OVERHEAD = 24  # bytes of a row's id and place


log = logging.getLogger("limner.precompute")
"""Outside `limner.training`, whose messages a run keeps in its log: these concern a cache."""


def precompute(config: Config) -> None:
    """Precompute everything that a run of this configuration needs; several processes can share the
    work."""
    parts = open_parts(config)
    config = parts.config
    check_cache_folder(config)
    data = open_data(config, parts.unit)
    device = choose_device(config.training.device)
    dtype = part_precision(choose_precision(config.training.mixed_precision, device))
    if isinstance(parts.autoencoder, PretrainedAutoencoder):
        stored_latents(config, data, parts.autoencoder, device, dtype)
    if parts.text_encoder is not None:
        stored_captions(config, data, parts.text_encoder, device, dtype)
    if data.set.refused:
        first = data.set.refused[0]
        log.info(
            f"{(n := len(data.set.refused))} {plural(n, 'row')} cannot be used; the first "
            f"{first.key}: {first.reason}"
        )
    log.info(
        f"everything that is computed once is in {Path(config.cache.folder).absolute()}"
        if config.vae.fingerprint or config.text_encoder.fingerprint
        else "nothing to precompute: vae and text_encoder name no pretrained model"
    )


def stored_latents(
    config: Config,
    data: Data,
    space: PretrainedAutoencoder,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Source, Source]:
    """The latents of trained and of held-out pictures, encoded in `dtype`."""
    trained, held_out = data.trained, data.held_out
    if trained.buckets is None or held_out.buckets is None:
        both = (trained.rows, held_out.rows)
        return _latents_of_size(config, data, both, config.data.image_size, space, device, dtype)
    parts = []
    for (height, width), *members in zip(
        trained.buckets.sizes, trained.buckets.members(), held_out.buckets.members(), strict=True
    ):
        here, there = (
            [rows[i] for i in some]
            for rows, some in zip((trained.rows, held_out.rows), members, strict=True)
        )
        size = height if height == width else (height, width)
        parts.append(_latents_of_size(config, data, (here, there), size, space, device, dtype))
    return (
        LatentsInBuckets(trained.rows, [part[0] for part in parts], trained.buckets),
        LatentsInBuckets(held_out.rows, [part[1] for part in parts], held_out.buckets),
    )


def _latents_of_size(
    config: Config,
    data: Data,
    rows: tuple[Sequence[Row], Sequence[Row]],
    size: Size,
    space: PretrainedAutoencoder,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[StoredLatents, StoredLatents]:
    """The latents of the trained and held-out rows whose pictures are of one size."""
    folder, (trained, held_out) = Path(config.cache.folder), rows
    height, width = height_and_width(size)
    stored: torch.dtype = getattr(torch, config.cache.dtype)
    key = {
        "format": 2,
        "decoding": DECODING,
        "autoencoder": config.vae.fingerprint,
        "image_size": size if isinstance(size, int) else f"{width} x {height}",
        "crop": getattr(data.set, "crop", "center"),
        "computed_in": name_of(dtype),
        "dtype": config.cache.dtype,
    }
    # With buckets, stores of the other sizes are expected: they are not reported.
    store = _open(folder, "latents", key, others=data.trained.buckets is None)
    known = Fingerprints(folder / "contents.npy")
    trained_ids, held_out_ids = (
        data.set.contents(trained, known),
        data.set.contents(held_out, known),
    )
    known.save()
    flipped_ids = mirrored(trained_ids) if config.data.horizontal_flip else trained_ids[:0]

    def row_of(index: int) -> Row:
        if len(trained) <= index < len(trained) + len(held_out):
            return held_out[index - len(trained)]
        return trained[index if index < len(trained) else index - len(trained) - len(held_out)]

    def image(index: int) -> Tensor | str:
        try:
            tensor = to_tensor(data.set.load(row_of(index), size))
        except ImageError as error:
            return str(error)
        return tensor.flip(-1) if index >= len(trained) + len(held_out) else tensor

    def make(indices: list[int]) -> list[Tensor | str]:
        images = list(threads.map(image, indices))
        good = [p for p in images if isinstance(p, Tensor)]
        if good:
            space.load(device, dtype)
        latents = iter(encode_within_memory(space, good, device) if good else torch.empty(0))
        return [p if isinstance(p, str) else next(latents)[None].to(stored) for p in images]

    latents = height * width // space.downsampling**2
    row_bytes = space.channels * latents * stored.itemsize
    with ThreadPoolExecutor(max(1, config.training.num_workers)) as threads:
        _complete(
            store,
            np.concatenate([trained_ids, held_out_ids, flipped_ids]),
            make,
            AT_ONCE,
            row_bytes,
            "pictures",
        )
    space.unload()
    both = (
        StoredLatents(store, trained, trained_ids, flipped_ids if len(flipped_ids) else None),
        StoredLatents(store, held_out, held_out_ids, None),
    )
    for source in both:
        for position in np.flatnonzero(source.positions < 0):
            reason = store.reason(source.ids[position].tobytes()) or "its latents are missing"
            data.set.refused.append(Refused(source.rows[int(position)].key, reason))
    return both


def encode_within_memory(
    space: PretrainedAutoencoder, images: Sequence[Tensor], device: torch.device
) -> Tensor:
    """Latents of B pictures, on the CPU; one picture at a time if memory runs out."""
    try:
        return space.encode(torch.stack(list(images)).to(device)).cpu()
    except torch.OutOfMemoryError:
        if len(images) == 1:
            raise
    return torch.cat([space.encode(image[None].to(device)).cpu() for image in images])


def stored_captions(
    config: Config,
    data: Data,
    reader: PretrainedTextEncoder,
    device: torch.device,
    dtype: torch.dtype,
) -> StoredCaptions:
    """The text embeddings of all captions, of the empty one, and of the preview prompts."""
    stored: torch.dtype = getattr(torch, config.cache.dtype)
    key = {
        "format": 2,
        "text_encoder": config.text_encoder.fingerprint,
        "max_length": config.text_encoder.max_length,
        "computed_in": name_of(dtype),
        "dtype": config.cache.dtype,
    }
    store = _open(Path(config.cache.folder), "captions", key)
    rows = [*data.trained.rows, *data.held_out.rows]
    prompts = preview_prompts(config, data.trained.rows, data.held_out.rows)
    captions = list(
        dict.fromkeys(["", *prompts, *(caption for row in rows for caption in row.captions)])
    )
    ids = np.frombuffer(b"".join(map(caption_id, captions)), dtype=np.uint8).reshape(-1, 16)

    def make(indices: list[int]) -> list[Tensor | str]:
        reader.load(device, dtype)
        some = [captions[i] for i in indices]
        return [packed(states, vector, stored) for states, vector in reader.rows(some)]

    sample = captions[:: max(1, len(captions) // 200)]
    tokens = sum(min(reader.length(c), reader.max_length) + 1 for c in sample) / len(sample)
    row_bytes = round(tokens * reader.width * stored.itemsize)
    _complete(store, ids, make, CAPTIONS_AT_ONCE, row_bytes, "captions")
    reader.unload()
    return StoredCaptions(store)


def check_cache_folder(config: Config) -> None:
    """Raises LimnerError if a new cache would lie inside the data. (An existing one there is used:
    it holds no pictures.)"""
    parts = (config.vae.fingerprint, config.text_encoder.fingerprint)
    if any(parts) or config.model.flow_map:
        check_new_cache(config)


def _open(folder: Path, name: str, key: dict[str, str | int | None], others: bool = True) -> Store:
    store = Store.open(folder, name, key)
    if others and not len(store):
        for sentence in store.other_keys():
            log.info(sentence)
    return store


def _complete(
    store: Store,
    ids: np.ndarray,
    make: Callable[[list[int]], list[Tensor | str]],
    at_once: int,
    row_bytes: int,
    what: str,
) -> None:
    """Compute and store what is missing of `ids`, after logging how much that takes."""
    missing = len(store.missing(ids))
    if not missing:
        return
    needed = missing * (row_bytes + ROW_OVERHEAD)
    log.info(f"{missing:,} {what} to encode once, into {store.folder} ({needed / 2**20:,.1f} MiB)")
    check_space(store.folder, needed)
    began, progress = time.monotonic(), progress_lines(log, f"{what} encoded")
    rows_per_shard = max(at_once, min(MOST_ROWS, MOST_BYTES // row_bytes // at_once * at_once))
    fill(store, ids, make, rows_per_shard, at_once, progress)
    log.info(f"{what} encoded in {format_duration(time.monotonic() - began)}")
