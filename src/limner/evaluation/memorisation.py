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

COARSE_SIDE, CANDIDATES = 8, 8
"""The nearest by a coarse look, which small shifts change little, are compared in earnest."""
SHIFTED_SIDE, REACH = 64, 4
"""In places of 64 x 64, drawings are moved by up to 4 each way: a sixteenth of their side."""
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
    f"the smallest over the mirror image and shifts by up to {REACH}/{SHIFTED_SIDE} of the side, "
    f"of the {CANDIDATES} trained pictures that are nearest over {COARSE_SIDE} x {COARSE_SIDE}"
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
    pictures = [drawn] if held_out is None else [drawn, held_out]
    _, places, features = _nearest(
        torch.cat([_coarse_looks(some) for some in pictures]),
        map(_looks, batches_of_trained),
        relative,
        max(neighbours, CANDIDATES),
        progress,
    )
    if not places.shape[1]:
        raise LimnerError("there are no trained pictures to compare the drawings with")
    parts = zip(pictures, features.split([len(some) for some in pictures]), strict=True)
    distances = torch.cat([_in_earnest(some, of) for some, of in parts if len(some)])
    distances, order = distances.sort(dim=1)
    distances, places = distances[:, :neighbours], places.gather(1, order)[:, :neighbours]
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
    known = _seen(trained)
    far = [
        _nearest(_seen(some)[:, None], [(known, known[:, :0])], torch.cdist)[0].median()
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
    batches: Iterable[tuple[Tensor, Tensor]],
    distance: Distance,
    most: int = 1,
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of all batches the nearest: distances [N, most], positions [N, most], features [N, most, f].

    Args:
        asked: [N, V, d]: V looks of each picture, of which the nearest counts.
        batches: of trained pictures what is compared, [B, d], and what is kept of them, [B, f].
    """
    count, looks, width = asked.shape
    best = asked.new_empty(count, 0)
    place = torch.empty(count, 0, dtype=torch.long, device=asked.device)
    kept: Tensor | None = None
    seen = 0
    for known, features in batches:
        known, features = known.to(asked.device), features.to(asked.device)
        found = torch.cat(
            [
                distance(part.reshape(-1, width), known).view(-1, looks, len(known)).amin(dim=1)
                for part in asked.split(AT_ONCE)
            ]
        )
        new = torch.arange(seen, seen + len(known), device=asked.device).expand(found.shape)
        before = best.shape[1]
        both, places = torch.cat([best, found], dim=1), torch.cat([place, new], dim=1)
        best, chosen = both.topk(min(most, both.shape[1]), dim=1, largest=False)
        place = places.gather(1, chosen)
        arrived = features[(chosen - before).clamp(min=0)]
        if kept is not None:
            old = kept.gather(1, chosen.clamp(max=before - 1)[..., None].expand(arrived.shape))
            arrived = torch.where((chosen < before)[..., None], old, arrived)
        kept = arrived
        seen += len(known)
        if progress is not None:
            progress(seen)
    return best, place, asked.new_empty(count, 0, 0) if kept is None else kept


def _in_earnest(pictures: Tensor, features: Tensor) -> Tensor:
    """Distances [N, K] of pictures, uint8 [N, H, W, 3], to K candidates each, [N, K, f].

    What a shift brings in at an edge repeats the edge.
    """
    steps = range(-REACH, REACH + 1)
    places = [(y, x) for y in steps for x in steps]
    rows = []
    for picture, candidates in zip(pictures, features, strict=True):
        moved = torch.cat(_moved(picture[None], places))
        rows.append(relative(_levelled(moved, SIDE).to(candidates.device), candidates).amin(dim=0))
    return torch.stack(rows)


def _coarse_looks(pictures: Tensor) -> Tensor:
    """[N, V, 3 * COARSE_SIDE * COARSE_SIDE]: mirrored or not, in its place and moved aslant."""
    by = REACH - 1
    places = [(0, 0), (-by, -by), (-by, by), (by, -by), (by, by)]
    return torch.stack([_levelled(look, COARSE_SIDE) for look in _moved(pictures, places)], dim=1)


def _moved(pictures: Tensor, places: Sequence[tuple[int, int]]) -> list[Tensor]:
    """uint8 [N, H, W, 3] -> at each place, [N, 3, SHIFTED_SIDE, SHIFTED_SIDE]; then mirrored."""
    side = SHIFTED_SIDE
    padded = F.pad(_averaged(pictures, side), (REACH,) * 4, mode="replicate")
    return [
        some[:, :, REACH + y : REACH + y + side, REACH + x : REACH + x + side]
        for some in (padded, padded.flip(3))
        for y, x in places
    ]


def _levelled(pictures: Tensor, side: int) -> Tensor:
    """[N, C, H, W] -> the content of each, [N, C * side * side]: less its mean brightness."""
    flat = F.adaptive_avg_pool2d(pictures, side).flatten(1)
    return flat - flat.mean(dim=1, keepdim=True)


def _averaged(pictures: Tensor, side: int) -> Tensor:
    """uint8 [N, H, W, 3] -> [N, 3, side, side], 0 to 1."""
    return F.adaptive_avg_pool2d(pictures.permute(0, 3, 1, 2).float() / 255, side)


def _looks(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """What is compared of trained pictures first, and in earnest."""
    some = _averaged(pictures, SIDE)
    return _levelled(some, COARSE_SIDE), _levelled(some, SIDE)


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
