"""Are drawn pictures copies of trained ones? Distances to the nearest trained picture say so."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from limner.errors import LimnerError
from limner.evaluation.measured import Measured, share

SIDE = 16
COPIES = 0.5
"""Below this ratio most drawings are nearer to a trained picture than new pictures ever are."""

SHIFTED_SIDE, REACH = 32, 2
"""Trained pictures are averaged to 32 x 32 and moved by up to 2 of these places each way."""
FAINT = 0.02
"""Content (root mean square, of a range of 1) below which a picture counts as blank: two blank
pictures are alike, whatever their noise."""
AT_ONCE = 2_000  # drawings compared with a batch at a time: bounds the memory, not the result
FEW = 20
"""Drawings, or real pictures, below which nothing is concluded."""
SURE = 0.01
"""Probability below which a count is no longer put down to chance."""

SPACE = (
    f"root mean square difference over {SIDE} x {SIDE} places after the mean brightness is "
    "taken out, relative to the content of the two pictures (0: the same, 1: nothing in common); "
    f"the smallest over shifts by up to {REACH}/{SHIFTED_SIDE} of the side and the mirror image"
)

Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Nearest:
    """A drawn picture and the trained pictures nearest to it.

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
    """All drawings together, beside real pictures that were not trained on.

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
    """The nearest trained pictures of each drawing, and whether they are nearer than is usual.

    What is compared is the content: each picture less its mean brightness, averaged to 16 x 16
    places, and the difference relative to how much content the two have. A plain difference would
    call any two small figures on white nearly the same. Trained pictures are tried mirrored and
    moved a little too, so that a copy is found which is; held-out pictures are measured alike.

    Only distances are kept, so the trained pictures may be many more than there is memory for. The
    time is that of about 50 comparisons for each drawing (and held-out picture) and trained one.

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
    asked = [_content(drawn)]
    if held_out is not None and len(held_out):
        asked.append(_content(held_out).to(asked[0].device))
    distances, places = _nearest(
        torch.cat(asked), map(_variants, batches_of_trained), relative, neighbours, progress
    )
    if not distances.shape[1]:
        raise LimnerError("there are no trained pictures to compare the drawings with")
    count = len(drawn)
    real = distances[count:, 0].double().cpu().numpy()
    usual = float(np.median(real)) if len(real) else math.nan
    of = [None] * count if own is None or not len(real) else list(own)
    nearest = tuple(
        Nearest(
            drawn=i,
            trained=tuple(places[i].tolist()),
            distances=tuple(distances[i].tolist()),
            usual=usual,
            own=None if mine is None else float(real[mine]),
        )
        for i, mine in zip(range(count), of, strict=True)
    )
    return _together(nearest, real, seed)


def nearest_ratio(drawn: Tensor, held_out: Tensor, trained: Tensor) -> float:
    """How far drawings are from the nearest trained picture, over how far real new pictures are.

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
    known = [_seen(trained)[:, None]]
    far = [_nearest(_seen(some), known, torch.cdist)[0].median() for some in (drawn, held_out)]
    return float(far[0] / far[1].clamp(min=1e-8))


def verdict(found: Memorisation) -> str:
    """One sentence for people."""
    drawn, real = len(found.nearest), len(found.held_out)
    if not real:
        return (
            "No real pictures were held out, so there is nothing to say how near is too near: "
            "look at the nearest pairs."
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
            f"{near} of {drawn} ({shared.value:.0%}) are nearer than 95 % of held-out pictures; "
            "look at the nearest pairs."
        )
    return (
        f"No sign of copying: drawings are {ratio:.2f} times as far from the nearest trained "
        f"picture as real pictures that were not trained on, and {near} of {drawn} are as near as "
        "the nearest 5 % of those."
    )


# ---- distances ---------------------------------------------------------------------------------


def relative(asked: Tensor, known: Tensor) -> Tensor:
    """Difference of contents over their sizes: [N, d], [K, d] -> [N, K], 0 to about 1.4.

    sqrt(|a - b|^2 / (|a|^2 + |b|^2)): 1 where they have nothing in common. A small figure must be
    matched as well as a large one, and a faint ghost of a picture is not a copy of it.
    """
    size = (asked**2).sum(1)[:, None] + (known**2).sum(1)
    apart = torch.addmm(size, asked, known.T, alpha=-2)
    faint = 2 * FAINT**2 * asked.shape[1]
    return (apart.clamp(min=0) / (size + faint)).sqrt()


def _nearest(
    asked: Tensor,
    batches: Iterable[Tensor],
    distance: Distance,
    most: int = 1,
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Distances and positions, [N, most] each, of the nearest of all batches.

    Args:
        asked: [N, d].
        batches: [B, V, d] each: V looks of each picture, of which the nearest counts.
    """
    best = asked.new_empty(len(asked), 0)
    place = torch.empty(len(asked), 0, dtype=torch.long, device=asked.device)
    seen = 0
    for batch in batches:
        count, looks, width = batch.shape
        known = batch.reshape(count * looks, width).to(asked.device)
        found = torch.cat(
            [
                distance(part, known).view(len(part), count, looks).amin(dim=2)
                for part in asked.split(AT_ONCE)
            ]
        )
        new = torch.arange(seen, seen + count, device=asked.device).expand(len(asked), count)
        best, place = torch.cat([best, found], dim=1), torch.cat([place, new], dim=1)
        best, chosen = best.topk(min(most, best.shape[1]), dim=1, largest=False)
        place = place.gather(1, chosen)
        seen += count
        if progress is not None:
            progress(seen)
    return best, place


def _content(pictures: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] -> [N, 3 * SIDE * SIDE], less the mean brightness of each."""
    return _levelled(_averaged(pictures))


def _variants(pictures: Tensor) -> Tensor:
    """`_content` of each picture as it is, moved and mirrored: [N, V, 3 * SIDE * SIDE].

    What a shift brings in at an edge repeats the edge.
    """
    small = _averaged(pictures)
    padded = F.pad(small, (REACH,) * 4, mode="replicate")
    steps = range(2 * REACH + 1)
    side = SHIFTED_SIDE
    looks = [
        _levelled(some[:, :, y : y + side, x : x + side])
        for some in (padded, padded.flip(3))
        for y in steps
        for x in steps
    ]
    return torch.stack(looks, dim=1)


def _averaged(pictures: Tensor) -> Tensor:
    x = pictures.permute(0, 3, 1, 2).float() / 255
    return F.adaptive_avg_pool2d(x, SHIFTED_SIDE)


def _levelled(pictures: Tensor) -> Tensor:
    flat = _seen(pictures)
    return flat - flat.mean(dim=1, keepdim=True)


def _seen(pictures: Tensor) -> Tensor:
    height, width = (min(SIDE, side) for side in pictures.shape[-2:])
    return F.adaptive_avg_pool2d(pictures.float(), (height, width)).flatten(1)


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
        (f"{len(real)} held-out pictures: the nearest 5 % are the nearest {few}",)
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
    random, ratios, resamples = np.random.default_rng(seed), [], 2000
    for _ in range(resamples):
        first = np.median(random.choice(far, len(far)))
        second = np.median(random.choice(real, len(real)))
        ratios.append(_over(float(first), float(second)))
    low, high = np.quantile(ratios, [0.025, 0.975])
    how = f"bootstrap over drawings and over held-out pictures, {resamples} resamples, seed {seed}"
    return Measured(value, (float(low), float(high)), how)


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
    """A ratio of distances; those below 1e-4 are the rounding of equal pictures."""
    return math.nan if math.isnan(by) else distance / max(by, 1e-4)
