"""Nearest neighbour search and distances between images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 16
"""Images are averaged to SIDE x SIDE pixels, which tolerates shifts by one pixel."""
COARSE_SIDE, CANDIDATES = 8, 8
"""A coarse comparison, which is robust to small shifts, selects candidates for the full one."""
SHIFTED_SIDE, REACH = 64, 4
"""Generated images are shifted by up to 4 of 64 pixels in each direction."""
CONTRAST = 1.1
"""Factor by which the contrast of a copy may be higher or lower."""
FAINT = 0.02
"""Content (root mean square, on a scale of 0 to 1) below which an image counts as blank: two blank
images are alike, whatever their noise."""
ROUNDING = 1e-4
"""Distances below this are rounding errors between equal images."""
AT_ONCE = 2_000  # images compared with a batch at a time; bounds the memory

SPACE = (
    f"root mean square difference over {SIDE} x {SIDE} pixels after subtracting the mean "
    "brightness, relative to the content of the two images (0: identical, 1: nothing in common); "
    f"the minimum over mirroring, contrasts up to {CONTRAST:g} times higher or lower, and shifts "
    f"by up to {REACH}/{SHIFTED_SIDE} of the side, among the {CANDIDATES} nearest training images "
    f"at {COARSE_SIDE} x {COARSE_SIDE} pixels"
)

Distance = Callable[[Tensor, Tensor], Tensor]


def nearest_contents(
    images: Sequence[Tensor],
    batches: Iterable[Tensor],
    most: int,
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Distances as in SPACE and indices, [N, most] each, nearest first.

    The batches need not fit in memory: a coarse comparison keeps the CANDIDATES nearest for each
    image, 3 kB each, and the full comparison runs on those at the end.

    Args:
        images: uint8 [n, H, W, 3] each; N in total.
        batches: uint8 [B, H', W', 3] each.
    """
    _, places, features = nearest(
        torch.cat([_coarse_looks(some) for some in images]),
        map(_looks, batches),
        relative,
        max(most, CANDIDATES),
        progress,
    )
    if not places.shape[1]:
        return places.float(), places
    parts = zip(images, features.split([len(some) for some in images]), strict=True)
    distances = torch.cat([_in_earnest(some, of) for some, of in parts if len(some)])
    distances, order = distances.sort(dim=1)
    return distances[:, :most], places.cpu().gather(1, order)[:, :most]


def relative(asked: Tensor, known: Tensor) -> Tensor:
    """Relative difference of contents: [..., N, d], [..., K, d] -> [..., N, K], at most 1.4.

    sqrt(|g a - b|^2 / (|g a|^2 + |b|^2)): 1 if they have nothing in common. The gain g equalises
    the norms as far as CONTRAST allows, since a brighter copy on white has less contrast. Small
    figures have to match as closely as large ones, and a faint ghost of an image is not a copy.
    """
    a = (asked**2).sum(-1)[..., :, None]
    b = (known**2).sum(-1)[..., None, :]
    gain = (b / a.clamp(min=1e-12)).sqrt_().clamp_(1 / CONTRAST, CONTRAST)
    size = a * gain**2 + b
    apart = size - 2 * gain * (asked @ known.mT)
    faint = 2 * FAINT**2 * asked.shape[-1]
    return (apart.clamp(min=0) / (size + faint)).sqrt()


def nearest(
    asked: Tensor,
    batches: Iterable[tuple[Tensor, Tensor]],
    distance: Distance,
    most: int = 1,
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest over all batches: distances [N, most], indices [N, most], features [N, most, f].

    Args:
        asked: [N, V, d]: V views of each image, of which the nearest counts.
        batches: of training images, the vectors to compare, [B, d], and the features to keep,
            [B, f].
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


def _in_earnest(images: Tensor, features: Tensor) -> Tensor:
    """Distances [N, K] of images, uint8 [N, H, W, 3], to K candidates each, [N, K, f]."""
    steps = range(-REACH, REACH + 1)
    features = features.cpu().double()  # not every accelerator has float64
    best = features.new_full(features.shape[:2], torch.inf)
    for look in _moved(images, SIDE, [(y, x) for y in steps for x in steps]):
        # In float64, equal images differ only by the rounding of the means.
        found = relative(look[:, None].cpu().double(), features)[:, 0]
        best = torch.minimum(best, found)
    return best


def _coarse_looks(images: Tensor) -> Tensor:
    """[N, V, 3 * COARSE_SIDE * COARSE_SIDE]: mirrored or not, unshifted and shifted diagonally."""
    by = REACH - 1
    places = [(0, 0), (-by, -by), (-by, by), (by, -by), (by, by)]
    return torch.stack(list(_moved(images, COARSE_SIDE, places)), dim=1)


def _moved(images: Tensor, side: int, places: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
    """The contents of uint8 [N, H, W, 3] at each shift, and mirrored: [N, 3 * side * side].

    Edges are replicated. All shifts are slices of one map of local means.
    """
    step = SHIFTED_SIDE // side
    padded = F.pad(_averaged(images, SHIFTED_SIDE), (REACH,) * 4, mode="replicate")
    means = F.avg_pool2d(F.avg_pool2d(padded, (step, 1), stride=1), (1, step), stride=1)
    for some in (means, means.flip(3)):
        for y, x in places:
            top, left = REACH + y, REACH + x
            rows = slice(top, top + SHIFTED_SIDE, step)
            columns = slice(left, left + SHIFTED_SIDE, step)
            yield _less_mean(some[:, :, rows, columns].flatten(1))


def _levelled(images: Tensor, side: int) -> Tensor:
    """[N, C, H, W] -> the content of each, [N, C * side * side]: without its mean brightness."""
    return _less_mean(F.adaptive_avg_pool2d(images, side).flatten(1))


def _less_mean(flat: Tensor) -> Tensor:
    return flat - flat.mean(dim=1, keepdim=True)


def _averaged(images: Tensor, side: int) -> Tensor:
    """uint8 [N, H, W, 3] -> [N, 3, side, side], 0 to 1."""
    return F.adaptive_avg_pool2d(images.permute(0, 3, 1, 2).float() / 255, side)


def _looks(images: Tensor) -> tuple[Tensor, Tensor]:
    """The content of training images for the coarse and for the full comparison."""
    some = _averaged(images, SIDE)
    return _levelled(some, COARSE_SIDE), _levelled(some, SIDE)


def seen(images: Tensor) -> Tensor:
    height, width = (min(SIDE, side) for side in images.shape[-2:])
    return F.adaptive_avg_pool2d(images.float(), (height, width)).flatten(1)
