"""Generation of images with a setting, and their metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from limner.apps.sweep.measurement import Measurement
from limner.apps.sweep.prompts import Part
from limner.config import SamplingConfig
from limner.evaluation.networks.networks import FeatureNetwork
from limner.evaluation.prompt_following import Gallery, check_shapes
from limner.evaluation.samples import Drawing, as_tensor, draw
from limner.inference.generator import ImageGenerator
from limner.inference.sampling_settings import function_evaluations
from limner.metrics.kernel_distance import cubic

GROUPS = 24
"""Maximum number of groups for the jackknife."""

Follow = Callable[[Sequence[Drawing]], list[float]]
"""Prompt following of each image, 0 to 1; 1 is fully correct."""


@dataclass
class Drawn:
    """Features and scores of the images generated with a setting so far."""

    features: list[Tensor] = field(default_factory=list)
    follow: list[float] = field(default_factory=list)
    count: int = 0


class Quality:
    """Measures settings on the captions of one part, always with the same noise.

    Args:
        generator: the model.
        part: captions, real images, and seeds.
        network: feature extractor for kernel distances; None: no distances.
        follow: measures prompt following; None: it cannot be measured.
    """

    def __init__(
        self,
        generator: ImageGenerator,
        part: Part,
        network: FeatureNetwork | None,
        follow: Follow | None,
    ) -> None:
        self.generator, self.part, self.network, self.follow = generator, part, network, follow
        self.real = network.features(part.images) if network is not None else None
        self.drawn: dict[SamplingConfig, Drawn] = {}

    def measure(self, sampling: SamplingConfig, count: int) -> Measurement:
        """Generate the missing ones of `count` images, and measure all of them."""
        drawn = self.drawn.setdefault(sampling, Drawn())
        if drawn.count < count:
            self._draw(sampling, drawn, count)
        captions = [i % len(self.part.asked) for i in range(count)]
        distance: float | None = None
        distances: tuple[float, ...] = ()
        if self.real is not None:
            features = torch.cat(drawn.features)[:count]
            used = min(count, len(self.part.asked))
            distance, distances = distance_and_without(features, captions, self.real[:used])
        match, right = None, None
        matches: tuple[float, ...] = ()
        if self.follow is not None:
            follow = np.array(drawn.follow[:count])
            match, right = float(follow.mean()), float((follow >= 1).mean())
            matches = mean_without(follow, captions)
        path, distilled = self.generator.objective.noise_schedule, self.generator.model.is_flow_map
        cost = function_evaluations(sampling, path, distilled=distilled)
        return Measurement(sampling, cost, count, distance, match, right, distances, matches)

    def drawings(self, sampling: SamplingConfig, first: int, last: int) -> list[Drawing]:
        """Generate images `first` to `last` - 1 of the part."""
        drawings = self.part.drawings(first, last)
        draw(self.generator, drawings, sampling=sampling)
        return drawings

    def _draw(self, sampling: SamplingConfig, drawn: Drawn, count: int) -> None:
        drawings = self.drawings(sampling, drawn.count, count)
        if self.network is not None:
            drawn.features.append(self.network.features(as_tensor(drawings)))
        if self.follow is not None:
            drawn.follow += self.follow(drawings)
        drawn.count = count


def nearest_is_its_own(gallery: Gallery) -> Follow:
    """Reciprocal rank of the true image by distance (metrics/retrieval.py): 1 if it is the nearest.
    The mean reciprocal rank is more informative than recall@1 when that is close to 1."""

    def follow(drawings: Sequence[Drawing]) -> list[float]:
        gallery.rank(drawings)
        return [0.0 if d.rank is None else 1 / d.rank for d in drawings]

    return follow


def checked(drawings: Sequence[Drawing]) -> list[float]:
    """For `shapes`: the fraction of the parts of the caption that hold in the image."""
    check_shapes(drawings)
    return [float(np.mean(list(d.holds.values()))) for d in drawings if d.holds is not None]


def groups_of(captions: Sequence[int]) -> np.ndarray:
    """The jackknife group of each image; images of the same caption are in the same group."""
    members = np.asarray(captions)
    return members % min(GROUPS, int(members.max()) + 1)


def mean_without(values: np.ndarray, captions: Sequence[int]) -> tuple[float, ...]:
    """Leave-one-group-out means."""
    groups = groups_of(captions)
    if groups.max() == 0:
        return ()
    return tuple(float(values[groups != g].mean()) for g in range(groups.max() + 1))


def distance_and_without(
    drawn: Tensor, captions: Sequence[int], real: Tensor
) -> tuple[float, tuple[float, ...]]:
    """`kernel_distance(drawn, real)`, and its leave-one-group-out values.

    Args:
        drawn: features of the generated images [N, d].
        captions: for each, the index of its caption's image in `real`.
        real: features of the real images [M, d].
    """
    a, b = drawn.double(), real.double()
    aa, bb, ab = cubic(a, a).numpy(), cubic(b, b).numpy(), cubic(a, b).numpy()
    np.fill_diagonal(aa, 0.0)
    np.fill_diagonal(bb, 0.0)
    own = groups_of(captions)
    theirs = np.arange(len(b)) % (own.max() + 1)

    def distance(i: np.ndarray, j: np.ndarray) -> float:
        n, m = i.sum(), j.sum()
        within = aa[np.ix_(i, i)].sum() / (n * (n - 1)) + bb[np.ix_(j, j)].sum() / (m * (m - 1))
        return float(within - 2 * ab[np.ix_(i, j)].mean())

    every = distance(np.ones(len(a), bool), np.ones(len(b), bool))
    if own.max() < 2:  # without one of two groups a single image may be left
        return every, ()
    return every, tuple(distance(own != g, theirs != g) for g in range(own.max() + 1))
