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
from limner.data.builtin.shapes_checker import check
from limner.evaluation.networks.networks import FeatureNetwork
from limner.inference.generator import ImageGenerator
from limner.inference.sampling_settings import function_evaluations
from limner.memory import in_parts_that_fit
from limner.metrics import retrieval
from limner.metrics.kernel_distance import cubic

GROUPS = 24
"""Groups of captions that are left out in turn, at most."""
AT_ONCE = 64

Follow = Callable[[Sequence[int], Tensor], list[float]]
"""(positions of captions, drawn pictures uint8 [N, S, S, 3]) -> how well each follows, 0 to 1; 1 is
fully."""


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
        self.real = network.features(part.pictures) if network is not None else None
        self.drawn: dict[SamplingConfig, Drawn] = {}

    def measure(self, sampling: SamplingConfig, count: int) -> Measurement:
        """Draw what is missing of `count` pictures, and measure them all."""
        drawn = self.drawn.setdefault(sampling, Drawn())
        if drawn.count < count:
            self._draw(sampling, drawn, count)
        captions = [i % len(self.part.captions) for i in range(count)]
        distance: float | None = None
        distances: tuple[float, ...] = ()
        if self.real is not None:
            features = torch.cat(drawn.features)[:count]
            used = min(count, len(self.part.captions))
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

    def pictures(self, sampling: SamplingConfig, first: int, last: int) -> Tensor:
        """Drawings `first` to `last` - 1 of the part: uint8 [N, S, S, 3]."""
        which = range(first, last)
        prompts = [self.part.captions[i % len(self.part.captions)] for i in which]
        seeds = [self.part.first_seed + i for i in which]
        settings = sampling.model_dump()
        made = in_parts_that_fit(
            min(AT_ONCE, len(prompts)),
            lambda size: self.generator.generate_batch(
                prompts, seeds=seeds, batch_size=size, **settings
            ),
        )
        return torch.stack([torch.from_numpy(np.array(picture)) for picture in made])

    def _draw(self, sampling: SamplingConfig, drawn: Drawn, count: int) -> None:
        pictures = self.pictures(sampling, drawn.count, count)
        if self.network is not None:
            drawn.features.append(self.network.features(pictures))
        if self.follow is not None:
            captions = [i % len(self.part.captions) for i in range(drawn.count, count)]
            drawn.follow += self.follow(captions, pictures)
        drawn.count = count


def nearest_is_its_own(pictures: Tensor) -> Follow:
    """1 / rank of a drawing's true picture among all by distance (metrics/retrieval.py): 1 where it
    is the nearest. The mean is the mean reciprocal rank, which tells more than recall at 1 where
    that is nearly 1.

    Args:
        pictures: uint8 [M, S, S, 3], the caption's own at its position.
    """

    def follow(captions: Sequence[int], drawn: Tensor) -> list[float]:
        return [1 / rank for rank in retrieval.ranks(drawn, captions, pictures)]

    return follow


def checked(texts: Sequence[str]) -> Follow:
    """Of `shapes`: the share of a caption's parts that hold in the picture."""

    def follow(captions: Sequence[int], drawn: Tensor) -> list[float]:
        found = [
            check(texts[i], picture.numpy()) for i, picture in zip(captions, drawn, strict=True)
        ]
        return [float(np.mean(list(result.holds.values()))) for result in found]

    return follow


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
