"""Features of a reference set: computed once and cached, or read from a published archive.

    cache/reference-3fa1b2c4d5e6.safetensors     features [N, width], mean, covariance, key

The key (network, weights, preprocessing, images, size, count) is hashed in the file name and
complete in the header. Files are written atomically with a checksum; a damaged one is recomputed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from limner.data.dataset import Refused
from limner.errors import LimnerError
from limner.evaluation.networks.networks import FeatureNetwork, Inception
from limner.evaluation.reference.archives import Archive
from limner.evaluation.reference.sources import Source
from limner.files.atomic import replacing
from limner.files.fingerprints import digest
from limner.metrics.frechet import Gaussian
from limner.version import __version__

FORMAT = 1
AS_PUBLISHED = "mean and covariance as published, of the whole data set"
READ_AT_ONCE = 256
"""Images in memory at a time."""

Key = dict[str, str | int]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of a reference on the features of one network.

    Attributes:
        gaussian: mean and covariance of the features.
        features: float32 [N, width], or None if a published file does not contain them.
        about: provenance as plain values, for results and reports.
        refused: images that could not be decoded and are excluded.
        events: notes for the user, such as a damaged cache file or a cache that is not writable.
    """

    gaussian: Gaussian
    features: Tensor | None
    about: dict[str, Any]
    refused: tuple[Refused, ...] = ()
    events: tuple[str, ...] = ()


def statistics_of(
    source: Source,
    network: FeatureNetwork,
    cache: Path | None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Statistics:
    """Features of all images of a source, from the cache if available.

    Args:
        source: where the images come from.
        cache: the cache folder (`cache.folder`); None: no cache.
        batch_size: images per forward pass.
        progress: called with the numbers of processed images and of all images.

    Raises:
        LimnerError: fewer than two images are readable, or a cache file cannot be read.
    """
    if cache is None:
        return _compute(source, network, {}, batch_size, progress)
    key = key_of(source, network, cache)
    path = cache / f"reference-{digest(json.dumps(key, sort_keys=True)).hex()[:12]}.safetensors"
    found = _read(path, key)
    events: tuple[str, ...] = ()
    if isinstance(found, Statistics):
        return found
    if found is not None:
        events = (f"{path} is damaged ({found}) and was computed again",)
    made = _compute(source, network, key, batch_size, progress)
    if (problem := _write(path, made)) is not None:
        events += (problem,)
    return replace(made, events=events)


def archive_statistics(
    path: Path,
    network: FeatureNetwork,
    cache: Path | None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Statistics:
    """Statistics from a published `.npz` of ADM's evaluator or pytorch-fid.

    Its mean and covariance are those of Inception-v3 on a whole data set, and are used for FID; its
    images, if any, are a subset, and are used for the other metrics. ADM's evaluator does the same:
    FID against all of ImageNet, precision and recall against the 10,000 images of the archive.

    Raises:
        LimnerError: the file is not such an archive, is damaged, or lacks data for this network.
    """
    archive = Archive(path)
    published = archive.gaussian()
    counts = isinstance(network, Inception) and network.verified
    if published is not None and counts and len(published.mean) != network.width:
        raise LimnerError(
            f"{path} contains statistics of {len(published.mean)} features, but {network.name} has "
            f"{network.width}"
        )
    if archive.count is None:
        assert published is not None
        if not counts:
            raise LimnerError(
                f"{path} contains mean and covariance of Inception-v3 features but no images, so "
                f"{network.label('Frechet distance')} cannot be measured against it"
            )
        about = network.identity() | {"pictures": archive.name, "moments": AS_PUBLISHED}
        said = (
            f"{path} does not record the number of images or how they were resized; pytorch-fid "
            "resizes differently from the original code and Limner"
        )
        return Statistics(published, None, about, events=(said,))
    seen = statistics_of(archive, network, cache, batch_size, progress)
    if published is None:
        return seen
    if counts:
        return replace(seen, gaussian=published, about=seen.about | {"moments": AS_PUBLISHED})
    said = (
        f"{path} contains mean and covariance of Inception-v3 features; they are not used for "
        f"{network.label('Frechet distance')}, which uses its {archive.count:,} images instead"
    )
    return replace(seen, events=(*seen.events, said))


def key_of(source: Source, network: FeatureNetwork, cache: Path) -> Key:
    """Everything that determines the features; equal keys mean equal features."""
    return {
        "format": FORMAT,
        **network.identity(),
        "contents": source.contents(cache).hex(),
        "count": source.count or 0,
        "resize": source.preparation,
    }


def _compute(
    source: Source,
    network: FeatureNetwork,
    key: Key,
    batch_size: int,
    progress: Progress | None,
) -> Statistics:
    total, parts, done = source.count or 0, [], 0
    for images in source.batches(max(READ_AT_ONCE, batch_size)):
        parts.append(network.features(images, batch_size))
        done += len(images)
        if progress is not None:
            progress(done, total)
    features = torch.cat(parts) if parts else torch.empty(0, network.width)
    if len(features) < 2:
        why = f"; the first: {source.refused[0].reason}" if source.refused else ""
        raise LimnerError(
            f"{source.name}: a reference requires at least two images, but only {len(features)} "
            f"can be read{why}"
        )
    about: dict[str, Any] = {
        "key": key,
        **network.identity(),
        "pictures": source.name,
        "count": len(features),
        "resize": source.preparation,
        "limner": __version__,
        "torch": torch.__version__,
        "refused": len(source.refused),
    }
    return Statistics(Gaussian.of(features), features, about, tuple(source.refused))


def _write(path: Path, made: Statistics) -> str | None:
    """Write the cache file atomically; returns a message if that fails, since that is no error."""
    assert made.features is not None
    tensors = {
        "features": made.features,
        "mean": made.gaussian.mean,
        "covariance": made.gaussian.covariance,
    }
    refused = [[row.key, row.reason] for row in made.refused]
    about = json.dumps(made.about | {"refused rows": refused})
    header = {"about": about, "checksum": _checksum(about, tensors)}
    data = safetensors.torch.save(tensors, {"header": json.dumps(header)})
    try:
        with replacing(path, needed=len(data)) as staging:
            staging.write_bytes(data)
    except OSError as error:
        return (
            f"the features could not be cached in {path} ({error.strerror or error}); the next "
            "evaluation computes them again. Free some disk space, or set cache.folder to another "
            "disk"
        )
    return None


def _read(path: Path, key: Key) -> Statistics | str | None:
    """The cached statistics, the reason why they are unusable, or None if there are none."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:  # permissions or a network error, not a damaged file
        raise LimnerError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        tensors = safetensors.torch.load(content)
        size = int.from_bytes(content[:8], "little")
        header = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["header"])
        if header["checksum"] != _checksum(header["about"], tensors):
            return "checksum mismatch"
        about = json.loads(header["about"])
        if about["key"] != key:
            return "its contents do not match its name"
        features = tensors["features"]
        gaussian = Gaussian(tensors["mean"], tensors["covariance"], len(features))
        refused = tuple(Refused(*row) for row in about.pop("refused rows"))
    except Exception as error:  # damaged bytes can raise anything
        lines = str(error).strip().splitlines()
        return lines[0] if lines else type(error).__name__
    return Statistics(gaussian, features, about, refused)


def _checksum(about: str, tensors: dict[str, Tensor]) -> str:
    hasher = hashlib.blake2b(about.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        hasher.update(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    return hasher.hexdigest()
