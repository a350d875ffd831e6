"""Memorisation: are generated images copies of their nearest training images?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from limner.errors import LimnerError
from limner.metrics.interval import Measured, share
from limner.metrics.nearest import ROUNDING, SPACE, nearest, nearest_contents, seen

COPIES = 0.5
"""A ratio of medians below this means that the model mostly copies its training images."""

FEW = 20
"""With fewer generated or held-out images no conclusion is drawn."""
SURE = 0.01
"""Significance level: a probability below this is not attributed to chance."""


@dataclass(frozen=True)
class Nearest:
    """A generated image and its nearest training images.

    Attributes:
        drawn: index of the generated image.
        trained: indices of the training images, the nearest first.
        distances: to each of them; see SPACE.
        usual: median distance of held-out images to their nearest training image; NaN if there are
            none.
        own: that distance for the real image of the same caption, if there is one.
    """

    drawn: int
    trained: tuple[int, ...]
    distances: tuple[float, ...]
    usual: float
    own: float | None = None

    @property
    def distance(self) -> float:
        """To the nearest training image."""
        return self.distances[0]

    @property
    def ratio(self) -> float:
        """Distance relative to `usual`: about 1 is as new as held-out images, 0 is a copy."""
        return _over(self.distance, self.usual)

    @property
    def own_ratio(self) -> float | None:
        """Distance relative to `own`: if the real image of the caption has a near-duplicate among
        the training images, generating it correctly is not copying."""
        return None if self.own is None else _over(self.distance, self.own)

    @property
    def suspicion(self) -> float:
        """Sort key of the worst cases, smallest first: the larger of the two ratios."""
        ratios = [r for r in (self.ratio, self.own_ratio) if r is not None and not math.isnan(r)]
        return max(ratios, default=self.distance)


@dataclass(frozen=True)
class Memorisation:
    """All generated images, compared with held-out images.

    Attributes:
        nearest: one for each generated image, in order.
        held_out: distance of each held-out image to its nearest training image.
        ratio: median distance of generated images over that of held-out images.
        nearer_than_any: fraction of generated images that are nearer than every held-out image.
        nearer_than_5_percent: fraction that is nearer than all but the nearest 5 % of those.
        chance: p-value: the probability of at least that many if generated images were as new as
            held-out images.
    """

    nearest: tuple[Nearest, ...]
    held_out: tuple[float, ...]
    ratio: Measured
    nearer_than_any: Measured
    nearer_than_5_percent: Measured
    chance: float
    space: str = SPACE

    def worst(self, most: int | None = None) -> list[Nearest]:
        """Generated images, the most similar to a training image first."""
        return sorted(self.nearest, key=lambda found: found.suspicion)[:most]


def nearest_trained(
    drawn: Tensor,
    batches_of_trained: Iterable[Tensor],
    held_out: Tensor | None = None,
    own: Sequence[int | None] | None = None,
    neighbours: int = 1,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Memorisation:
    """Find the nearest training images of each generated image, and whether they are suspiciously
    near.

    Images are compared by content: with the mean brightness subtracted, averaged to 16 x 16 pixels,
    and relative to the content of both, since by a plain difference any two small figures on white
    would be nearly equal. Mirrored and slightly shifted versions of each generated image are tried
    too, to find mirrored and shifted copies; held-out images are measured the same way.

    The training images need not fit in memory: a coarse comparison keeps the few nearest for each
    generated image, 3 kB each, and the full comparison runs on those at the end.

    Args:
        drawn: generated images, uint8 [N, H, W, 3], preferably of held-out captions.
        batches_of_trained: training images, uint8 [B, H', W', 3] each, iterated once.
        held_out: real images that were not trained on, uint8 [M, H'', W'', 3].
        own: for each generated image, the index in `held_out` of its caption's real image, or None.
        neighbours: number of training images to keep for each generated image.
        seed: of the bootstrap.
        progress: called after each batch with the number of training images seen so far.

    Raises:
        LimnerError: there are no generated images, or no training images to compare them with.
    """
    if not len(drawn):
        raise LimnerError("no generated images to check for memorisation")
    count = len(drawn)
    images = [drawn] if held_out is None else [drawn, held_out]
    distances, places = nearest_contents(images, batches_of_trained, neighbours, progress)
    if not places.shape[1]:
        raise LimnerError("no training images to compare the generated images with")
    real = distances[count:, 0].double().cpu().numpy()
    usual = float(np.median(real)) if len(real) else math.nan
    of = [None] * count if own is None or not len(real) else list(own)
    found = tuple(
        Nearest(
            drawn=i,
            trained=tuple(places[i].tolist()),
            distances=tuple(distances[i].tolist()),
            usual=usual,
            own=None if mine is None else float(real[mine]),
        )
        for i, mine in zip(range(count), of, strict=True)
    )
    return _together(found, real, seed)


def nearest_ratio(drawn: Tensor, held_out: Tensor, trained: Tensor) -> float:
    """Distance of generated images to the nearest training image, relative to that of held-out
    images.

    About 1: as new as images that were never trained on; about 0: copies. Use captions that were
    not trained on. This is a quick measure for images or latents, without shifts; see
    `nearest_trained` for the full comparison.

    Args:
        drawn: generated from held-out captions, [N, C, H, W].
        held_out: real, not trained on, [M, C, H, W].
        trained: all training images, or a sample of them, [K, C, H, W].

    Returns:
        The ratio of the median distances: root mean square over at most 16 x 16 pixels.
    """
    known = seen(trained)
    far = [
        nearest(seen(some)[:, None], [(known, known[:, :0])], torch.cdist)[0].median()
        for some in (drawn, held_out)
    ]
    return float(far[0] / far[1].clamp(min=1e-8))


def verdict(found: Memorisation) -> str:
    """The conclusion in one sentence."""
    drawn, real = len(found.nearest), len(found.held_out)
    if not real:
        return (
            "No images were held out to compare with, so memorisation cannot be judged: inspect "
            "the nearest pairs."
        )
    if found.nearest[0].usual <= ROUNDING:
        return (
            "Most held-out images have a duplicate among the training images, so copies cannot be "
            "distinguished from correct images."
        )
    ratio, shared = found.ratio.value, found.nearer_than_5_percent
    near = round(shared.value * drawn)
    if min(drawn, real) < FEW:
        return (
            f"{drawn} generated and {real} held-out images are too few to judge memorisation: "
            f"inspect the nearest pairs (generated images are {ratio:.2f} times as far from the "
            "nearest training image as held-out images)."
        )
    if ratio < COPIES:
        return (
            f"Most generated images are near-copies: they are only {ratio:.2f} times as far from "
            "the nearest training image as held-out images."
        )
    if found.chance < SURE:
        return (
            f"Some generated images are nearer to a training image than expected by chance: "
            f"{near} of {drawn} ({shared.value:.0%}) are nearer than 95% of held-out images; "
            "inspect the nearest pairs."
        )
    return (
        f"No sign of memorisation: generated images are {ratio:.2f} times as far from the nearest "
        f"training image as held-out images, and {near} of {drawn} are as near as the nearest 5% "
        "of those."
    )


# ---- all together ------------------------------------------------------------------------------


def _together(nearest: tuple[Nearest, ...], real: np.ndarray, seed: int) -> Memorisation:
    far = np.array([found.distance for found in nearest])
    if not len(real):
        unknown = Measured(math.nan, None, "none: no images were held out")
        return Memorisation(nearest, (), unknown, unknown, unknown, math.nan)
    few = max(1, len(real) // 20)  # the nearest 5 %
    limit = np.sort(real)[few - 1]
    nearer = int((far < limit).sum())
    notes = (
        (f"{len(real)} held-out images: the nearest 5% are the nearest {few}",)
        if len(real) < 100
        else ()
    )
    return Memorisation(
        nearest,
        tuple(real.tolist()),
        _ratio_of_medians(far, real, seed),
        share(int((far < real.min()).sum()), len(far)),
        share(nearer, len(far), notes),
        tail(nearer, len(far), few, len(real)),
    )


def _ratio_of_medians(far: np.ndarray, real: np.ndarray, seed: int) -> Measured:
    value = _over(float(np.median(far)), float(np.median(real)))
    if min(len(far), len(real)) < 2:
        return Measured(value, None, "none: it requires at least two images in each set")
    random, resamples = np.random.default_rng(seed), 2000
    first, second = (resampled_medians(values, resamples, random) for values in (far, real))
    ratios = np.maximum(first, ROUNDING) / np.maximum(second, ROUNDING)
    low, high = np.quantile(ratios, [0.025, 0.975])
    how = f"bootstrap over generated and held-out images, {resamples} resamples, seed {seed}"
    return Measured(value, (float(low), float(high)), how)


def resampled_medians(values: np.ndarray, times: int, random: np.random.Generator) -> np.ndarray:
    rounds = [len(part) for part in np.array_split(np.empty(times), 20)]  # bounds the memory
    parts = [np.median(random.choice(values, (some, len(values))), axis=1) for some in rounds]
    return np.concatenate(parts)


def tail(nearer: int, drawn: int, few: int, real: int) -> float:
    """Probability that at least `nearer` of `drawn` images are below the `few`-th smallest of
    `real` others if both have the same distribution (negative hypergeometric distribution).

    In a random order of all, j generated images precede the few-th real one in
    C(j + few - 1, j) C(drawn - j + real - few, drawn - j) of C(drawn + real, drawn) ways.
    """
    ways = [
        math.comb(j + few - 1, j) * math.comb(drawn - j + real - few, drawn - j)
        for j in range(nearer, drawn + 1)
    ]
    return sum(ways) / math.comb(drawn + real, drawn)


def _over(distance: float, by: float) -> float:
    """A ratio of distances; 1 if both are within rounding error."""
    return math.nan if math.isnan(by) else max(distance, ROUNDING) / max(by, ROUNDING)
