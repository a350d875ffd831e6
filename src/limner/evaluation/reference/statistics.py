"""Features of a reference set: computed once, kept on the disk, or read from a published archive.

    cache/reference-3fa1b2c4d5e6.safetensors     features [N, width], mean, covariance; what of

What the file is of (network, weights, preparation, pictures, size, count) is in its name as a hash
and in its header in full. It is written whole or not at all, carries a checksum, and one that is
damaged is made again.
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
"""Pictures that are in memory at a time."""

Key = dict[str, str | int]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Statistics:
    """What pictures are compared with, as one network sees it.

    Attributes:
        gaussian: mean and covariance of the features.
        features: float32 [N, width], or None where a published file holds none.
        about: what they are of and how they were made; plain values, for results and reports.
        refused: pictures that could not be decoded, and are not among the features.
        events: what people should know: a damaged file made again, a cache that cannot be written.
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
    """Features of all pictures of a source, from the cache if they are there.

    Args:
        source: where the pictures come from.
        cache: the folder where they are kept (`cache.folder`), or None: nowhere.
        batch_size: pictures that the network is given at a time.
        progress: is told the pictures done and the pictures there are.

    Raises:
        LimnerError: fewer than two pictures can be used, or a file cannot be read.
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
        events = (f"{path} cannot be used ({found}); computed again",)
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
    """A published `.npz`: of ADM's evaluator, or of pytorch-fid.

    Mean and covariance that it holds are Inception-v3's, of a whole data set, and count for FID;
    pictures that it holds are fewer, and give what else is measured. (So ADM's evaluator does: FID
    against all of ImageNet, precision and recall against the 10,000 pictures of the archive.)

    Raises:
        LimnerError: it is no such archive, is damaged, or holds nothing for this network.
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
                f"{path} contains mean and covariance of Inception-v3 features but no pictures, so "
                f"there is nothing that {network.label('Frechet distance')} could be measured "
                "against"
            )
        about = network.identity() | {"pictures": archive.name, "moments": AS_PUBLISHED}
        said = (
            f"{path} does not record how many pictures it was made from, nor how they were "
            "resized; pytorch-fid resizes differently from the original code and Limner"
        )
        return Statistics(published, None, about, events=(said,))
    seen = statistics_of(archive, network, cache, batch_size, progress)
    if published is None:
        return seen
    if counts:
        return replace(seen, gaussian=published, about=seen.about | {"moments": AS_PUBLISHED})
    said = (
        f"{path} contains Inception-v3's mean and covariance of its whole data set; they are not "
        f"used for {network.label('Frechet distance')}, which uses its {archive.count:,} pictures"
    )
    return replace(seen, events=(*seen.events, said))


def key_of(source: Source, network: FeatureNetwork, cache: Path) -> Key:
    """What decides the features: equal keys, equal features."""
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
            f"{source.name}: a reference needs at least two pictures, but only {len(features)} can "
            f"be used{why}"
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
    """Keep it, whole or not at all; what went wrong, in a sentence: the features are there."""
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
            f"the features could not be kept in {path} ({error.strerror or error}); the next "
            "evaluation computes them again. Free some disk space, or set cache.folder to another "
            "disk"
        )
    return None


def _read(path: Path, key: Key) -> Statistics | str | None:
    """What the cache holds, or why it cannot be used, or None where there is nothing."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:  # not the file's fault: permissions, a network
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
    except Exception as error:  # whatever damaged bytes lead to
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
