"""Memorisation: are generated pictures copies of their nearest training pictures?"""

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
"""Below this ratio most drawings are nearer to a trained picture than new pictures ever are."""

FEW = 20
"""Drawings, or real pictures, below which nothing is concluded."""
SURE = 0.01
"""Probability below which a count is no longer put down to chance."""


@dataclass(frozen=True)
class Nearest:
    """A generated picture and its nearest training pictures.

    Attributes:
        drawn: its position among the drawings.
        trained: positions among the trained pictures, the nearest first.
        distances: to each of them; see SPACE.
        usual: median distance of real held-out pictures to their nearest trained one; NaN: none.
        own: that distance for the real picture of the same caption, where there is one.
    """

    drawn: int
    trained: tuple[int, ...]
    distances: tuple[float, ...]
    usual: float
    own: float | None = None

    @property
    def distance(self) -> float:
        """To the nearest."""
        return self.distances[0]

    @property
    def ratio(self) -> float:
        """To what is usual: about 1 as new as real new pictures are, 0 a copy."""
        return _over(self.distance, self.usual)

    @property
    def own_ratio(self) -> float | None:
        """To the real picture of the same caption: where that has a near twin among the trained
        pictures, drawing it right is no copying."""
        return None if self.own is None else _over(self.distance, self.own)

    @property
    def suspicion(self) -> float:
        """What the worst are sorted by, smallest first: near by either measure."""
        ratios = [r for r in (self.ratio, self.own_ratio) if r is not None and not math.isnan(r)]
        return max(ratios, default=self.distance)


@dataclass(frozen=True)
class Memorisation:
    """All generated pictures, compared with real pictures that were not trained on.

    Attributes:
        nearest: one for each drawing, in their order.
        held_out: distance of each real held-out picture to its nearest trained one.
        ratio: median distance of drawings over that of held-out pictures.
        nearer_than_any: share of drawings that are nearer than every held-out picture.
        nearer_than_5_percent: share that is nearer than all but the nearest 5 % of those.
        chance: probability of that many, or more, if drawings were as new as held-out pictures.
    """

    nearest: tuple[Nearest, ...]
    held_out: tuple[float, ...]
    ratio: Measured
    nearer_than_any: Measured
    nearer_than_5_percent: Measured
    chance: float
    space: str = SPACE

    def worst(self, most: int | None = None) -> list[Nearest]:
        """The drawings most like a trained picture first."""
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
    """The nearest training pictures of each generated picture, and whether they are suspiciously
    near.

    What is compared is the content: each picture less its mean brightness, averaged to 16 x 16
    places, and the difference relative to how much content the two have. A plain difference would
    call any two small figures on white nearly the same. Drawings are tried mirrored and moved a
    little too, so that a copy is found which is; held-out pictures are measured alike.

    The trained pictures may be many more than there is memory for: of each drawing the few nearest
    by a coarse look are kept, 3 kB each, and compared in earnest at the end.

    Args:
        drawn: uint8 [N, H, W, 3], best of captions that were not trained on.
        batches_of_trained: uint8 [B, H', W', 3] each, gone through once.
        held_out: uint8 [M, H'', W'', 3], real pictures that were not trained on.
        own: for each drawing the position in `held_out` of its caption's real picture, or None.
        neighbours: how many trained pictures to keep for each drawing.
        seed: of the bootstrap.
        progress: called after each batch with the number of trained pictures seen so far.

    Raises:
        LimnerError: nothing drawn, or no trained picture to compare with.
    """
    if not len(drawn):
        raise LimnerError("there are no drawings to look for copies among")
    count = len(drawn)
    images = [drawn] if held_out is None else [drawn, held_out]
    distances, places = nearest_contents(images, batches_of_trained, neighbours, progress)
    if not places.shape[1]:
        raise LimnerError("there are no trained pictures to compare the drawings with")
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
    """Distance of generated pictures to the nearest training picture, relative to that of real new
    pictures.

    About 1: they are as new as pictures that were never trained on; about 0: they are copies. What
    can be copied at all is in question only for captions that were not trained on. This is the
    quick measure for latents and pictures alike, without shifts; see `nearest_trained`.

    Args:
        drawn: [N, C, H, W], of held-out captions.
        held_out: [M, C, H, W], real pictures that were not trained on.
        trained: [K, C, H, W], those that were, or as many of them as there is time for.

    Returns:
        The ratio of the two medians; root mean square distances over 16 x 16 places at most.
    """
    known = seen(trained)
    far = [
        nearest(seen(some)[:, None], [(known, known[:, :0])], torch.cdist)[0].median()
        for some in (drawn, held_out)
    ]
    return float(far[0] / far[1].clamp(min=1e-8))


def verdict(found: Memorisation) -> str:
    """One sentence for people."""
    drawn, real = len(found.nearest), len(found.held_out)
    if not real:
        return (
            "No real pictures were held out, so there is nothing to say how near is too near: "
            "look at the nearest pairs."
        )
    if found.nearest[0].usual <= ROUNDING:
        return (
            "Most held-out pictures have a twin among the trained ones, so a copy cannot be told "
            "from a drawing of what was asked for."
        )
    ratio, shared = found.ratio.value, found.nearer_than_5_percent
    near = round(shared.value * drawn)
    if min(drawn, real) < FEW:
        return (
            f"{drawn} drawings and {real} held-out pictures are too few to tell: look at the "
            f"nearest pairs (drawings are {ratio:.2f} times as far from the nearest trained picture"
            " as held-out ones)."
        )
    if ratio < COPIES:
        return (
            f"Most drawings are copies: they are only {ratio:.2f} times as far from the nearest "
            "trained picture as real pictures that were not trained on."
        )
    if found.chance < SURE:
        return (
            f"Some drawings are nearer to a trained picture than real ones would be by chance: "
            f"{near} of {drawn} ({shared.value:.0%}) are nearer than 95% of held-out pictures; "
            "look at the nearest pairs."
        )
    return (
        f"No sign of copying: drawings are {ratio:.2f} times as far from the nearest trained "
        f"picture as real pictures that were not trained on, and {near} of {drawn} are as near as "
        "the nearest 5% of those."
    )


# ---- all together ------------------------------------------------------------------------------


def _together(nearest: tuple[Nearest, ...], real: np.ndarray, seed: int) -> Memorisation:
    far = np.array([found.distance for found in nearest])
    if not len(real):
        unknown = Measured(math.nan, None, "none: no real pictures were held out")
        return Memorisation(nearest, (), unknown, unknown, unknown, math.nan)
    few = max(1, len(real) // 20)  # the nearest 5 %
    limit = np.sort(real)[few - 1]
    nearer = int((far < limit).sum())
    notes = (
        (f"{len(real)} held-out pictures: the nearest 5% are the nearest {few}",)
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
        return Measured(value, None, "none: it takes two pictures or more on either side")
    random, resamples = np.random.default_rng(seed), 2000
    first, second = (resampled_medians(values, resamples, random) for values in (far, real))
    ratios = np.maximum(first, ROUNDING) / np.maximum(second, ROUNDING)
    low, high = np.quantile(ratios, [0.025, 0.975])
    how = f"bootstrap over drawings and over held-out pictures, {resamples} resamples, seed {seed}"
    return Measured(value, (float(low), float(high)), how)


def resampled_medians(values: np.ndarray, times: int, random: np.random.Generator) -> np.ndarray:
    rounds = [len(part) for part in np.array_split(np.empty(times), 20)]  # not all in memory
    parts = [np.median(random.choice(values, (some, len(values))), axis=1) for some in rounds]
    return np.concatenate(parts)


def tail(nearer: int, drawn: int, few: int, real: int) -> float:
    """Probability that at least `nearer` of `drawn` pictures are below the `few`-th smallest of
    `real` others, if both are of one kind (the negative hypergeometric distribution).

    In a random order of all, j drawn ones come before the few-th real one in
    C(j + few - 1, j) C(drawn - j + real - few, drawn - j) of C(drawn + real, drawn) ways.
    """
    ways = [
        math.comb(j + few - 1, j) * math.comb(drawn - j + real - few, drawn - j)
        for j in range(nearer, drawn + 1)
    ]
    return sum(ways) / math.comb(drawn + real, drawn)


def _over(distance: float, by: float) -> float:
    """A ratio of distances; of two that are rounding alone it is 1."""
    return math.nan if math.isnan(by) else max(distance, ROUNDING) / max(by, ROUNDING)
