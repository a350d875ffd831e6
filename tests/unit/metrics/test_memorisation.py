"""Copies are found, whatever small change hides them, and new pictures are not called copies."""

import math
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from limner.errors import LimnerError
from limner.metrics import memorisation, nearest
from limner.metrics.memorisation import (
    COPIES,
    Memorisation,
    Nearest,
    nearest_trained,
    tail,
    verdict,
)

SIDE = 64


def figures(count: int, seed: int, side: int = SIDE, sizes: tuple[float, float] = (0.2, 0.4)):
    """uint8 [N, side, side, 3]: ellipses with a coloured pattern of their own, on white."""
    random = torch.Generator().manual_seed(seed)
    colours = torch.rand(count, 3, 5, 5, generator=random)
    pattern = F.interpolate(colours, size=side, mode="bilinear")
    low, high = sizes
    radii = low + (high - low) * torch.rand(count, 2, 1, 1, generator=random)
    middle = 0.45 + 0.1 * torch.rand(count, 2, 1, 1, generator=random)
    at = (torch.arange(side) + 0.5) / side
    y = (at[:, None] - middle[:, 0]) / radii[:, 0]
    x = (at[None, :] - middle[:, 1]) / radii[:, 1]
    inside = ((x**2 + y**2) < 1)[:, None]
    images = torch.where(inside, pattern, torch.ones(()))
    return (255 * images).round().byte().permute(0, 2, 3, 1).contiguous()


def moved(images: Tensor, down: int, right: int) -> Tensor:
    """White comes in where the picture went away."""
    padded = F.pad(images.permute(0, 3, 1, 2), (4, 4, 4, 4), value=255)
    side = images.shape[1]
    part = padded[:, :, 4 - down : 4 - down + side, 4 - right : 4 - right + side]
    return part.permute(0, 2, 3, 1)


def brighter(images: Tensor, by: int) -> Tensor:
    return (images.int() + by).clamp(0, 255).byte()


def with_noise(images: Tensor) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(5))
    return (images.float() + 12 * noise).clamp(0, 255).byte()


TRAINED = figures(200, seed=0)
HELD_OUT = figures(100, seed=1)
COPIED = list(range(0, 200, 8))
CHANGES = {
    "nothing": lambda x: x,
    "1 down": lambda x: moved(x, 1, 0),
    "2 down, 2 left": lambda x: moved(x, 2, -2),
    "mirrored": lambda x: x.flip(2),
    "mirrored, 1 right": lambda x: moved(x.flip(2), 0, 1),
    "brighter": lambda x: brighter(x, 20),
    "darker": lambda x: (x.float() * 0.92).byte(),
    "noise": with_noise,
    "all of it": lambda x: with_noise(brighter(moved(x.flip(2), 1, -2), 10)),
}


def batches(images: Tensor, size: int = 32) -> Iterator[Tensor]:
    yield from images.split(size)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("side", [32, 64])
def test_a_copy_is_found_whatever_small_change_hides_it(change: str, side: int) -> None:
    trained, held_out = (figures(n, seed, side) for n, seed in ((200, 0), (40, 1)))
    found = nearest_trained(CHANGES[change](trained[COPIED]), batches(trained), held_out)
    assert [one.trained[0] for one in found.nearest] == COPIED
    assert max(one.ratio for one in found.nearest) < COPIES
    assert found.nearer_than_5_percent.value == 1
    assert "Most generated images are near-copies" in verdict(found)


def test_new_pictures_are_as_far_as_held_out_ones() -> None:
    found = nearest_trained(figures(100, seed=2), batches(TRAINED), HELD_OUT)
    assert found.ratio.value == pytest.approx(1, abs=0.1)
    assert found.ratio.interval is not None
    low, high = found.ratio.interval
    assert low < 1 < high < 1.3
    assert found.nearer_than_5_percent.value < 0.15
    assert found.chance > 0.01
    assert "No sign of memorisation" in verdict(found)


def test_a_few_copies_among_new_pictures_stand_first() -> None:
    drawn = figures(40, seed=2)
    drawn[3::6] = moved(TRAINED[5:12], 1, 1)
    found = nearest_trained(drawn, batches(TRAINED), HELD_OUT, neighbours=2)
    worst = found.worst(7)
    pairs = {(one.drawn, one.trained[0]) for one in worst}
    assert pairs == set(zip(range(3, 40, 6), range(5, 12), strict=True))
    assert all(len(one.trained) == 2 and one.distances[0] < one.distances[1] for one in worst)
    assert found.worst()[7].ratio > COPIES
    assert found.ratio.value > 0.85  # the median does not see them; the count of the near ones does
    assert found.chance < 0.01
    assert "Some generated images are nearer" in verdict(found)


def test_sharing_the_background_does_not_make_a_copy() -> None:
    """Small new figures on white are nearer by plain difference than a changed copy is."""
    small = figures(20, seed=3, sizes=(0.06, 0.09))
    copies = CHANGES["all of it"](TRAINED[:5])
    drawn = torch.cat([small, copies])
    trained = torch.cat([TRAINED, figures(200, seed=4, sizes=(0.06, 0.09))])
    averaged = (nearest._averaged(some, 16).flatten(1) for some in (drawn, trained))
    plain = torch.cdist(*averaged).amin(dim=1)
    assert plain[:20].max() < plain[20:].min()  # by plain difference all of these come first
    found = nearest_trained(drawn, batches(trained), HELD_OUT)
    assert {one.drawn for one in found.worst(5)} == {20, 21, 22, 23, 24}


def test_blank_pictures_and_ghosts_are_near_nothing() -> None:
    blank = torch.full((2, SIDE, SIDE, 3), 255, dtype=torch.uint8)
    ghost = (255 - (255 - TRAINED[:2].float()) * 0.1).round().byte()
    found = nearest_trained(torch.cat([blank, ghost]), batches(TRAINED), HELD_OUT)
    assert min(one.ratio for one in found.nearest) > 0.9
    again = nearest_trained(brighter(blank, -3), batches(blank), HELD_OUT)
    assert again.nearest[0].distance < 0.1  # but two blank ones are alike


def test_a_picture_with_a_true_twin_is_measured_by_its_own() -> None:
    """The real picture of a caption lies beside a trained one: drawing it right is no copying."""
    held_out = HELD_OUT.clone()
    held_out[:1] = moved(TRAINED[9:10], 0, 1)
    drawn = torch.cat([held_out[:1], TRAINED[4:5], figures(1, seed=9)])
    found = nearest_trained(drawn, batches(TRAINED), held_out, own=[0, 1, None])
    right, copy, free = found.nearest
    assert right.ratio < 0.2
    assert right.own_ratio == pytest.approx(1)
    assert right.suspicion == right.own_ratio
    assert copy.own_ratio is not None
    assert copy.own_ratio < 0.1
    assert free.own is free.own_ratio is None
    assert found.worst(1) == [copy]


def test_batches_make_no_difference_and_are_gone_through_once() -> None:
    drawn, told = figures(7, seed=2), []
    one = nearest_trained(drawn, iter([TRAINED]), HELD_OUT, neighbours=3)
    many = nearest_trained(drawn, batches(TRAINED, 3), HELD_OUT, neighbours=3, progress=told.append)
    assert [n.trained for n in many.nearest] == [n.trained for n in one.nearest]
    assert many.ratio == one.ratio
    assert told == [*range(3, 200, 3), 200]


def test_what_is_kept_does_not_grow_with_the_trained_pictures() -> None:
    sizes = []
    original = nearest._in_earnest

    def watched(images: Tensor, features: Tensor) -> Tensor:
        sizes.append(features.numel())
        return original(images, features)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "_in_earnest", watched)
        for times in (1, 20):
            nearest_trained(figures(3, seed=2), (TRAINED for _ in range(times)))
    assert sizes[0] == sizes[1] == 3 * nearest.CANDIDATES * 3 * nearest.SIDE**2


def test_the_distance_is_its_definition() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(0, 0.3, (4, 12)), random.normal(0, 0.3, (5, 12))
    found = nearest.relative(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            z = x * np.clip(np.linalg.norm(y) / np.linalg.norm(x), 1 / 1.1, 1.1)
            size = (z**2).sum() + (y**2).sum() + 2 * 12 * nearest.FAINT**2
            expected = math.sqrt(((z - y) ** 2).sum() / size)
            assert found[i, j] == pytest.approx(expected, abs=1e-9)


def test_the_tail_is_the_share_of_all_orders() -> None:
    """Of 4 drawn and 3 real pictures in every order: how often k drawn come before the second."""
    drawn, real, few = 4, 3, 2
    orders = list(combinations(range(drawn + real), real))  # places of the real ones
    for nearer in range(drawn + 1):
        right = sum(sum(p not in real_at for p in range(real_at[few - 1])) >= nearer
                    for real_at in orders)  # fmt: skip
        assert tail(nearer, drawn, few, real) == pytest.approx(right / len(orders))


def test_without_held_out_pictures_it_says_so() -> None:
    found = nearest_trained(TRAINED[:2], batches(TRAINED))
    assert found.nearest[0].distance < 0.01
    assert math.isnan(found.ratio.value)
    assert found.nearest[0].own_ratio is None
    assert "No images were held out" in verdict(found)
    assert nearest_trained(TRAINED[:2], batches(TRAINED), HELD_OUT[:0]).held_out == ()


def test_held_out_pictures_that_are_trained_ones_tell_nothing() -> None:
    found = nearest_trained(TRAINED[:30], batches(TRAINED), TRAINED[50:80])
    assert found.ratio.value == 1  # and not 0 / 0
    assert "have a duplicate" in verdict(found)


def test_few_pictures_are_no_evidence() -> None:
    assert "too few to judge" in verdict(nearest_trained(TRAINED[:3], batches(TRAINED), HELD_OUT))
    assert "too few" in verdict(nearest_trained(TRAINED[:30], batches(TRAINED), HELD_OUT[:3]))
    one = nearest_trained(TRAINED[:1], batches(TRAINED), HELD_OUT[:1])
    assert one.ratio.interval is None


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(LimnerError, match="no generated images"):
        nearest_trained(TRAINED[:0], batches(TRAINED), HELD_OUT)
    with pytest.raises(LimnerError, match="no training images"):
        nearest_trained(TRAINED[:2], iter([]), HELD_OUT)


def test_fewer_trained_pictures_than_asked_for() -> None:
    found = nearest_trained(TRAINED[:2], batches(TRAINED[:3], 2), neighbours=5)
    assert sorted(found.nearest[0].trained) == [0, 1, 2]


def test_the_interval_holds_what_it_says_and_its_seed_decides() -> None:
    random = np.random.default_rng(0)
    inside = 0
    for seed in range(60):
        far, real = random.lognormal(0, 0.3, 50), random.lognormal(0, 0.3, 70)
        found_ones = tuple(Nearest(i, (0,), (x,), 1.0) for i, x in enumerate(far.tolist()))
        found: Memorisation = memorisation._together(found_ones, real, seed)
        assert found.ratio.interval is not None
        inside += found.ratio.interval[0] < 1 < found.ratio.interval[1]
    assert inside >= 54  # 95 % of 60 are 57, with a standard deviation of 1.7
    assert memorisation._together(found_ones, real, seed).ratio == found.ratio


@pytest.mark.parametrize("side", [8, 16])
def test_moves_are_those_of_the_picture(side: int) -> None:
    image = figures(1, seed=3)
    places = [(0, 0), (2, -3), (-4, 4)]
    looks = list(nearest._moved(image, side, places))
    for k, (y, x) in enumerate([*places, *places]):
        mirrored = image.flip(2) if k >= len(places) else image
        padded = F.pad(mirrored.permute(0, 3, 1, 2).float() / 255, (4, 4, 4, 4), mode="replicate")
        whole = padded[:, :, 4 + y : 68 + y, 4 + x : 68 + x]
        blocks = whole.reshape(3, side, SIDE // side, side, SIDE // side).mean(dim=(2, 4)).flatten()
        torch.testing.assert_close(looks[k][0], blocks - blocks.mean(), atol=1e-6, rtol=0)
