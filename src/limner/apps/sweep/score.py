"""Draw with a setting, and measure what was drawn."""

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
"""Groups of captions that are left out in turn, at most."""

Follow = Callable[[Sequence[Drawing]], list[float]]
"""How well each drawing follows its caption, 0 to 1; 1 is fully."""


@dataclass
class Drawn:
    """What is known of a setting's pictures so far; more are added to it."""

    features: list[Tensor] = field(default_factory=list)
    follow: list[float] = field(default_factory=list)
    count: int = 0


class Quality:
    """Measures settings on the captions of one part, always with the same noise.

    Args:
        generator: draws, in its precision.
        part: captions, real pictures, seeds.
        network: for kernel distances; None: without.
        follow: tells how well pictures follow their captions; None: nothing can.
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
        """Draw what is missing of `count` pictures, and measure them all."""
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
        path = self.generator.objective.noise_schedule
        cost = function_evaluations(sampling, path)
        return Measurement(sampling, cost, count, distance, match, right, distances, matches)

    def drawings(self, sampling: SamplingConfig, first: int, last: int) -> list[Drawing]:
        """Number `first` to `last` - 1 of the part, drawn."""
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
    """1 / rank of a drawing's true picture among all by distance (metrics/retrieval.py): 1 where it
    is the nearest. The mean is the mean reciprocal rank, which tells more than recall at 1 where
    that is nearly 1."""

    def follow(drawings: Sequence[Drawing]) -> list[float]:
        gallery.rank(drawings)
        return [0.0 if d.rank is None else 1 / d.rank for d in drawings]

    return follow


def checked(drawings: Sequence[Drawing]) -> list[float]:
    """Of `shapes`: the share of a caption's parts that hold in the picture."""
    check_shapes(drawings)
    return [float(np.mean(list(d.holds.values()))) for d in drawings if d.holds is not None]


def groups_of(captions: Sequence[int]) -> np.ndarray:
    """The group of each drawing: whole captions stay together."""
    members = np.asarray(captions)
    return members % min(GROUPS, int(members.max()) + 1)


def mean_without(values: np.ndarray, captions: Sequence[int]) -> tuple[float, ...]:
    """The mean without each group in turn."""
    groups = groups_of(captions)
    if groups.max() == 0:
        return ()
    return tuple(float(values[groups != g].mean()) for g in range(groups.max() + 1))


def distance_and_without(
    drawn: Tensor, captions: Sequence[int], real: Tensor
) -> tuple[float, tuple[float, ...]]:
    """`kernel_distance(drawn, real)`, and the same without each group of captions on both sides.

    Args:
        drawn: features [N, d].
        captions: for each, the position of its caption's picture in `real`.
        real: features [M, d].
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
    if own.max() < 2:  # without one of two groups a single picture may be left
        return every, ()
    return every, tuple(distance(own != g, theirs != g) for g in range(own.max() + 1))
