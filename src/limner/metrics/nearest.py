"""Nearest neighbour search and distances between pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 16
"""Pictures are averaged to this many places a side: a line that is a pixel off is forgiven."""
COARSE_SIDE, CANDIDATES = 8, 8
"""The nearest by a coarse look, which small shifts change little, are compared in earnest."""
SHIFTED_SIDE, REACH = 64, 4
"""In places of 64 x 64, drawings are moved by up to 4 each way: a sixteenth of their side."""
CONTRAST = 1.1
"""Factor by which a copy may have more or less contrast."""
FAINT = 0.02
"""Content (root mean square, of a range of 1) below which a picture counts as blank: two blank
pictures are alike, whatever their noise."""
ROUNDING = 1e-4
"""Distances below this are what rounding makes of equal pictures."""
AT_ONCE = 2_000  # drawings compared with a batch at a time: bounds the memory, not the result

SPACE = (
    f"root mean square difference over {SIDE} x {SIDE} places after the mean brightness is "
    "taken out, relative to the content of the two pictures (0: the same, 1: nothing in common); "
    f"the smallest over the mirror image, contrasts up to {CONTRAST:g} times higher or lower, and "
    f"shifts by up to {REACH}/{SHIFTED_SIDE} of the side, "
    f"of the {CANDIDATES} trained pictures that are nearest over {COARSE_SIDE} x {COARSE_SIDE}"
)

Distance = Callable[[Tensor, Tensor], Tensor]


def nearest_contents(
    images: Sequence[Tensor],
    batches: Iterable[Tensor],
    most: int,
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Distances as in SPACE and positions, [N, most] each, nearest first.

    The batches may hold more pictures than there is memory for: of each picture that is asked for
    the CANDIDATES nearest by a coarse look are kept, 3 kB each, and compared in earnest at the end.

    Args:
        images: uint8 [n, H, W, 3] each; N of them in all.
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
    """Difference of contents over their sizes: [..., N, d], [..., K, d] -> [..., N, K], to 1.4.

    sqrt(|g a - b|^2 / (|g a|^2 + |b|^2)): 1 where they have nothing in common. The gain g brings
    the contents to one size as far as CONTRAST allows, for a brighter copy on white is one of less
    contrast. A small figure must be matched as well as a large one, and a faint ghost of a picture
    is not a copy of it.
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


def _in_earnest(images: Tensor, features: Tensor) -> Tensor:
    """Distances [N, K] of pictures, uint8 [N, H, W, 3], to K candidates each, [N, K, f]."""
    steps = range(-REACH, REACH + 1)
    features = features.cpu().double()  # not every accelerator has float64
    best = features.new_full(features.shape[:2], torch.inf)
    for look in _moved(images, SIDE, [(y, x) for y in steps for x in steps]):
        # float64: what is left between equal pictures is then rounding of the means alone.
        found = relative(look[:, None].cpu().double(), features)[:, 0]
        best = torch.minimum(best, found)
    return best


def _coarse_looks(images: Tensor) -> Tensor:
    """[N, V, 3 * COARSE_SIDE * COARSE_SIDE]: mirrored or not, in its place and moved aslant."""
    by = REACH - 1
    places = [(0, 0), (-by, -by), (-by, by), (by, -by), (by, by)]
    return torch.stack(list(_moved(images, COARSE_SIDE, places)), dim=1)


def _moved(images: Tensor, side: int, places: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
    """The contents of uint8 [N, H, W, 3], moved to each place, and mirrored: [N, 3 * side * side].

    What comes in at an edge repeats the edge. All moves are read from one picture of the means
    around every place.
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
    """[N, C, H, W] -> the content of each, [N, C * side * side]: less its mean brightness."""
    return _less_mean(F.adaptive_avg_pool2d(images, side).flatten(1))


def _less_mean(flat: Tensor) -> Tensor:
    return flat - flat.mean(dim=1, keepdim=True)


def _averaged(images: Tensor, side: int) -> Tensor:
    """uint8 [N, H, W, 3] -> [N, 3, side, side], 0 to 1."""
    return F.adaptive_avg_pool2d(images.permute(0, 3, 1, 2).float() / 255, side)


def _looks(images: Tensor) -> tuple[Tensor, Tensor]:
    """What is compared of trained pictures first, and in earnest."""
    some = _averaged(images, SIDE)
    return _levelled(some, COARSE_SIDE), _levelled(some, SIDE)


def seen(images: Tensor) -> Tensor:
    height, width = (min(SIDE, side) for side in images.shape[-2:])
    return F.adaptive_avg_pool2d(images.float(), (height, width)).flatten(1)
