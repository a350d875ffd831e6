"""Metrics: each against a second computation in numpy or scipy, and the right way round."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import Tensor
from torch.nn import functional as F

from limner.config import load_config
from limner.data.open import open_data
from limner.errors import LimnerError
from limner.evaluation.networks.networks import EfficientNet
from limner.metrics import kernel_distance as kernels
from limner.metrics import precision_recall as prc
from limner.metrics.frechet import Gaussian, frechet_distance
from limner.metrics.frechet import frechet_distance_of as frechet
from limner.metrics.interval import bootstrapped_mean, share
from limner.metrics.kernel_distance import (
    cmmd,
    kernel_distance,
    kernel_distance_over_subsets,
    measure_kernel_distance,
)
from limner.metrics.precision_recall import precision_recall
from limner.metrics.real_vs_real import floor
from limner.metrics.scores import clip_score, inception_score


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mixed(count: int, width: int, seed: int) -> Tensor:
    """Features that depend on one another, as a network's do."""
    return randn(count, width, seed=seed) @ randn(width, width, seed=99) + 0.1 * seed


# Frechet distance


def scipy_frechet(a: Tensor, b: Tensor) -> float:
    """As published code has it: with a general matrix root."""
    x, y = a.double().numpy(), b.double().numpy()
    one, two = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(one @ two)
    between = float(((x.mean(0) - y.mean(0)) ** 2).sum())
    return between + float(np.trace(one) + np.trace(two) - 2 * np.trace(np.real(root)))


@pytest.mark.parametrize("counts", [(200, 150), (12, 200)])  # the second: a singular covariance
def test_the_frechet_distance_is_scipy_s(counts: tuple[int, int]) -> None:
    a, b = mixed(counts[0], 16, seed=1), mixed(counts[1], 16, seed=2)
    assert frechet(a, b).value == pytest.approx(scipy_frechet(a, b), rel=1e-6)
    assert frechet(a, b).value == pytest.approx(frechet(b, a).value, rel=1e-7)


def test_the_frechet_distance_of_known_gaussians() -> None:
    one = Gaussian(torch.zeros(3).double(), torch.diag(torch.tensor([1.0, 4, 9])).double(), None)
    two = Gaussian(torch.ones(3).double(), torch.diag(torch.tensor([4.0, 4, 1])).double(), None)
    expected = 3 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2
    assert frechet_distance(one, two).value == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(one, one).value == pytest.approx(0, abs=1e-12)


def test_equal_sets_are_at_no_distance_and_that_can_be_seen_in_singular_ones() -> None:
    a = mixed(300, 16, seed=1)
    scale = float(Gaussian.of(a).covariance.trace())
    assert frechet(a, a.clone()).value < 1e-9 * scale
    few = mixed(10, 64, seed=1)
    assert frechet(few, few.clone()).value < 1e-5 * float(Gaussian.of(few).covariance.trace())


def test_mean_and_covariance_are_numpy_s_over_several_blocks() -> None:
    a = mixed(5000, 4, seed=3)
    found = Gaussian.of(a)
    assert np.allclose(found.mean, a.double().numpy().mean(0), rtol=1e-10)
    assert np.allclose(found.covariance, np.cov(a.double().numpy(), rowvar=False), rtol=1e-10)
    assert found.count == 5000


def test_what_the_counts_do_to_a_frechet_distance_is_said() -> None:
    few, many = mixed(16, 16, seed=1), mixed(60, 16, seed=2)
    assert "singular" in frechet(few, many).notes[0]
    assert "do not compare it with values on 50,000" in frechet(many, many).notes[0]
    assert frechet(many, many).interval is None
    assert "biased" in frechet(many, many).interval_by
    large = Gaussian(torch.zeros(2).double(), torch.eye(2).double(), 50_000)
    assert frechet_distance(large, large).notes == ()
    with pytest.raises(LimnerError, match="at least two images"):
        Gaussian.of(few[:1])
    with pytest.raises(LimnerError, match="different feature extractors"):
        frechet(few, randn(20, 8))
    broken = many.clone()
    broken[0, 0] = torch.nan
    with pytest.raises(LimnerError, match="NaN"):
        frechet(broken, many)


# Kernel distance and CMMD


def by_pairs(
    a: Tensor, b: Tensor, k: Callable[[np.ndarray, np.ndarray], float], biased: bool
) -> float:
    x, y = a.double().numpy(), b.double().numpy()

    def within(z: np.ndarray) -> float:
        n = len(z)
        return float(
            np.mean([k(z[i], z[j]) for i in range(n) for j in range(n) if biased or i != j])
        )

    return within(x) + within(y) - 2 * float(np.mean([k(p, q) for p in x for q in y]))


def cubic(x: np.ndarray, y: np.ndarray) -> float:
    return float((x @ y / len(x) + 1) ** 3)


def gaussian(x: np.ndarray, y: np.ndarray) -> float:
    return math.exp(-float(((x - y) ** 2).sum()) / 200)


@pytest.mark.parametrize("block", [2**25, 8 * 9 * 2])  # the second: two rows at a time
def test_kernel_distances_are_means_over_pairs(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BLOCK_BYTES", block)
    a, b = randn(7, 5), randn(9, 5, seed=1) + 0.3
    expected = by_pairs(a, b, cubic, biased=False)
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert measure_kernel_distance(a, b).value == pytest.approx(expected, rel=1e-9)
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    for biased in (True, False):
        expected = 1000 * by_pairs(a, b, gaussian, biased)
        found = cmmd(a, b, biased)
        assert found.value == pytest.approx(expected, rel=1e-6)
        other = 1000 * by_pairs(a, b, gaussian, not biased)
        assert f"{other:.4g}" in found.notes[0]
    with pytest.raises(LimnerError, match="unit norm"):
        cmmd(2 * a, b)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("block", [2**25, 8 * 6 * 3])
def test_the_interval_is_that_of_leaving_each_picture_out(
    block: int, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "BLOCK_BYTES", block)
    a, b = randn(8, 4), randn(6, 4, seed=1) + 0.5
    variance = 0.0
    for which, count in (("a", 8), ("b", 6)):
        without = []
        for i in range(count):
            rest = [j for j in range(count) if j != i]
            pair = (a[rest], b) if which == "a" else (a, b[rest])
            without.append(by_pairs(*pair, cubic, biased))
        variance += (count - 1) / count * float(((without - np.mean(without)) ** 2).sum())
    found = kernels.Discrepancy.of(a, b, kernels.cubic).interval(biased)
    assert found is not None
    assert (found[1] - found[0]) / 2 == pytest.approx(1.959964 * variance**0.5, rel=1e-9)
    assert sum(found) / 2 == pytest.approx(by_pairs(a, b, cubic, biased), rel=1e-9)
    assert measure_kernel_distance(a[:2], b).interval is None


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    def pair(seed: int, count: int) -> tuple[Tensor, Tensor]:
        return randn(count, 4, seed=2 * seed), randn(count, 4, seed=2 * seed + 1) + 0.7

    truth = np.mean([kernel_distance(*pair(1000 + seed, 1000)) for seed in range(20)])
    intervals = [measure_kernel_distance(*pair(seed, 150)).interval for seed in range(200)]
    held = np.mean([low < truth < high for low, high in filter(None, intervals)])
    assert 0.88 < held < 0.98
    alike = [measure_kernel_distance(randn(60, 4, seed=s), randn(60, 4, seed=s + 500)).interval
             for s in range(200)]  # fmt: skip
    assert np.mean([low < 0 < high for low, high in filter(None, alike)]) > 0.95  # wider here


def test_over_subsets_it_is_the_mean_and_deviation_of_subsets() -> None:
    a, b = mixed(60, 5, seed=1), mixed(50, 5, seed=2)
    found = kernel_distance_over_subsets(a, b, subsets=30, size=20, seed=3)
    again = kernel_distance_over_subsets(a, b, subsets=30, size=20, seed=3)
    assert (found.value, found.std) == (again.value, again.std)
    assert found.value != kernel_distance_over_subsets(a, b, 30, 20, seed=4).value
    assert found.std is not None
    # Its mean is that over all pictures, but for chance.
    assert abs(found.value - kernel_distance(a, b)) < 4 * found.std / 30**0.5
    whole = kernel_distance_over_subsets(a, b[:50], subsets=2, size=50)
    assert whole.std is not None
    part = kernel_distance_over_subsets(a[:50], b, subsets=2, size=50)  # all of both, shuffled
    assert part.value == pytest.approx(kernel_distance(a[:50], b), rel=1e-9)
    assert part.std == pytest.approx(0, abs=1e-9 * abs(part.value))
    with pytest.raises(LimnerError, match="subsets of at most 50"):
        kernel_distance_over_subsets(a, b, size=51)


# Precision and recall


def naive_share(points: np.ndarray, others: np.ndarray, k: int) -> float:
    """Of `points` those within a ball around one of `others`."""
    radii = []
    for i, centre in enumerate(others):
        rest = np.delete(others, i, axis=0)
        radii.append(sorted(np.linalg.norm(rest - centre, axis=1))[k - 1])
    inside = [
        any(np.linalg.norm(p - o) <= r for o, r in zip(others, radii, strict=True)) for p in points
    ]
    return float(np.mean(inside))


@pytest.mark.parametrize("block", [2**25, 8 * 30 * 4])
def test_precision_and_recall_are_shares_within_neighbourhoods(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prc, "BLOCK_BYTES", block)
    real, drawn = randn(30, 3), 0.7 * randn(25, 3, seed=1) + 0.4
    for k in (1, 3, 5):
        found = precision_recall(real, drawn, k)
        x, y = real.double().numpy(), drawn.double().numpy()
        assert found.precision.value == naive_share(y, x, k)
        assert found.recall.value == naive_share(x, y, k)
        assert 0 < found.recall.value < found.precision.value  # this one draws too little variety


def test_equal_sets_are_precise_and_whole_and_far_ones_neither() -> None:
    real = 100 + mixed(40, 8, seed=1)  # far from the origin, where rounding is larger
    same = precision_recall(real, real[torch.randperm(40)])
    assert (same.precision.value, same.recall.value) == (1, 1)
    far = precision_recall(real, real + 1000)
    assert (far.precision.value, far.recall.value) == (0, 0)
    # One kind drawn again and again: precise, and nothing like whole.
    one = precision_recall(real, real[:1] + 1e-3 * randn(40, 8))
    assert one.precision.value == 1
    assert one.recall.value <= 0.05
    # More copies than neighbours: balls without any extent.
    copies = randn(40, 300)
    found = precision_recall(copies[:5].repeat(4, 1), copies)
    assert found.precision.value == 5 / 40
    with pytest.raises(LimnerError, match="more than 3 images"):
        precision_recall(real[:3], real)
    with pytest.raises(LimnerError, match="different feature extractors"):
        precision_recall(real, randn(40, 7))


# Scores


def numpy_inception_score(logits: np.ndarray, splits: int) -> tuple[float, float]:
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    scores = []
    for part in np.array_split(p, splits):
        mean = part.mean(0)
        scores.append(np.exp((part * (np.log(part) - np.log(mean))).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def test_the_inception_score_is_numpy_s() -> None:
    logits = 3 * randn(60, 20)
    expected = numpy_inception_score(logits.double().numpy(), 5)
    found = inception_score(logits, splits=5, seed=None)
    assert (found.value, found.std) == (pytest.approx(expected[0]), pytest.approx(expected[1]))
    assert found.interval is None
    # Shuffling changes what the splits are, and not what one whole is.
    whole = inception_score(logits, splits=1, seed=None).value
    assert inception_score(logits, splits=1, seed=5).value == pytest.approx(whole)
    assert inception_score(logits, splits=5, seed=5).value != pytest.approx(expected[0])


def test_an_inception_score_lies_between_one_and_the_classes() -> None:
    sure = 100 * torch.eye(20)  # each picture surely another class
    assert inception_score(sure, splits=1).value == pytest.approx(20)
    assert inception_score(sure[:1].repeat(20, 1), splits=1).value == pytest.approx(1)
    assert inception_score(torch.zeros(20, 20), splits=1).value == pytest.approx(1)
    assert "20 classes" in inception_score(sure, splits=2).notes[0]
    assert inception_score(sure.repeat(2, 1), splits=2).notes == ()
    with pytest.raises(LimnerError, match="10 splits"):
        inception_score(sure[:9])


def test_the_clip_score_is_a_hundredfold_cosine_without_negatives() -> None:
    images, texts = randn(40, 8), randn(40, 8, seed=1)
    x, y = images.double().numpy(), texts.double().numpy()
    cosines = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert (cosines < 0).any()
    found = clip_score(images, texts)
    assert found.value == pytest.approx(np.maximum(100 * cosines, 0).mean(), rel=1e-9)
    assert found.interval is not None
    assert found.interval[0] < found.value < found.interval[1]
    assert clip_score(images, images).value == pytest.approx(100)
    assert clip_score(images, -images).value == 0
    near = images + 0.5 * texts  # drawings that are somewhat like their prompts
    assert clip_score(near, images).value > clip_score(near.roll(1, 0), images).value + 30
    with pytest.raises(LimnerError, match="one prompt per image"):
        clip_score(images, texts[:3])


# Intervals


def test_a_share_has_wilson_s_interval() -> None:
    for right, count in ((0, 5), (3, 7), (39, 39), (997, 1000)):
        found = share(right, count)
        expected = scipy.stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
        assert found.value == right / count
        assert found.interval == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert math.isnan(share(0, 0).value)
    assert share(0, 0).interval is None


def test_a_bootstrap_holds_the_mean_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    plain, grouped, blind = 0, 0, 0
    prompts = [i // 4 for i in range(80)]  # four pictures of each of 20 prompts
    for seed in range(200):
        found = bootstrapped_mean(random.normal(5, 1, 80), seed=seed, resamples=300)
        plain += found.interval is not None and found.interval[0] < 5 < found.interval[1]
        values = np.repeat(random.normal(5, 1, 20), 4) + 0.1 * random.normal(size=80)
        found = bootstrapped_mean(values, prompts, seed=seed, resamples=300)
        grouped += found.interval is not None and found.interval[0] < 5 < found.interval[1]
        found = bootstrapped_mean(values, None, seed=seed, resamples=300)
        blind += found.interval is not None and found.interval[0] < 5 < found.interval[1]
    assert 0.88 < plain / 200 < 0.98
    assert 0.86 < grouped / 200 < 0.98
    assert blind / 200 < 0.8  # to take pictures of one prompt for independent is to be too sure


def test_a_bootstrap_is_repeatable_and_needs_two_groups() -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    assert bootstrapped_mean(values, seed=1) == bootstrapped_mean(values, seed=1)
    assert bootstrapped_mean(values, seed=1) != bootstrapped_mean(values, seed=2)
    alone = bootstrapped_mean(values, ["a", "a", "a", "a"])
    assert alone.value == 3.75
    assert alone.interval is None
    uneven = bootstrapped_mean(values, ["a", "b", "a", "a"])
    assert uneven.value == 3.75  # pictures count, not prompts
    assert "the 2 prompts" in uneven.interval_by


# The floor


def test_the_floor_is_what_chance_and_bias_leave() -> None:
    real, drawn = mixed(400, 8, seed=1), mixed(100, 8, seed=1)[torch.randperm(100)] + 1
    found = floor(frechet, real, counts=(100, 300))
    assert found.counts == (100, 300)
    assert len(found.values) == 3
    assert len(set(found.values)) == 3
    assert found.value == pytest.approx(np.mean(found.values))
    assert found.notes == ()
    assert 0 < found.value < frechet(drawn, real[100:]).value
    # The bias of few pictures is in the floor as it is in the distance.
    assert floor(frechet, real, counts=(20, 20)).value > 2 * found.value
    assert floor(frechet, real, counts=(100, 300)) == found
    assert floor(frechet, real, counts=(100, 300), seed=1) != found
    assert abs(floor(kernel_distance, real, repeats=20).value) < kernel_distance(drawn, real) / 10


def test_the_floor_takes_disjoint_pictures_and_says_what_it_lacks() -> None:
    real, seen = torch.arange(20.0)[:, None], []

    def look(a: Tensor, b: Tensor) -> float:
        seen.append((a.flatten().tolist(), b.flatten().tolist()))
        return 0.0

    assert floor(look, real).counts == (10, 10)
    lacking = floor(look, real, counts=(15, 20))
    assert lacking.counts == (10, 10)
    assert "instead of 15 and 20" in lacking.notes[0]
    assert floor(look, real, counts=(4, 16)).notes == ()
    for a, b in seen:
        assert not set(a) & set(b)
        assert len(set(a)) == len(a)
    seen.clear()
    held_out = 100 + torch.arange(6.0)[:, None]
    whole = floor(look, real, held_out)
    assert whole.counts == (6, 20)
    assert len(whole.values) == 1  # there is one way to take all
    assert sorted(seen[0][0]) == [100, 101, 102, 103, 104, 105]
    assert sorted(seen[0][1]) == list(range(20))
    assert len(floor(look, real, held_out, counts=(4, 20)).values) == 3
    with pytest.raises(LimnerError, match="two sets of at least two images"):
        floor(look, real[:3])


# On pictures


def test_noise_and_blur_move_each_number_the_right_way() -> None:
    data = open_data(
        load_config(None, ["data.dataset_name=emoji", "data.subset=demo", "data.image_size=64"])
    )
    some = range(0, len(data.trained.rows), len(data.trained.rows) // 32)
    real = torch.stack([data.trained.load(i) for i in some][:32])
    others = real[1::2]

    def noisy(strength: float) -> Tensor:
        noise = strength * randn(*others.shape)
        return (others.float() + noise).clamp(0, 255).to(torch.uint8)

    def blurred(size: int) -> Tensor:
        x = others.permute(0, 3, 1, 2).float()
        x = F.interpolate(F.adaptive_avg_pool2d(x, size), size=64, mode="bilinear")
        return x.permute(0, 2, 3, 1).clamp(0, 255).to(torch.uint8)

    network = EfficientNet()
    reference = network.features(real[0::2])
    sets = {
        "same": reference,
        "others": network.features(others),
        "little noise": network.features(noisy(20)),
        "much noise": network.features(noisy(80)),
        "little blur": network.features(blurred(32)),
        "much blur": network.features(blurred(8)),
    }

    def order(value: Callable[[Tensor], float]) -> list[list[float]]:
        """Along noise, and along blur: what should grow."""
        found = {name: value(features) for name, features in sets.items()}
        return [
            [found["same"], found["others"], found[f"little {kind}"], found[f"much {kind}"]]
            for kind in ("noise", "blur")
        ]

    for distance in (
        lambda x: frechet(x, reference).value,
        lambda x: kernel_distance(x, reference),
        lambda x: cmmd(F.normalize(x, dim=1), F.normalize(reference, dim=1)).value,
    ):
        for found in order(distance):
            assert found == sorted(found)
            assert found[3] > 1.5 * found[1]
            assert found[0] <= 1e-6 * found[3]
    for which in ("precision", "recall"):

        def share_of(x: Tensor, which: str = which) -> float:
            return getattr(precision_recall(reference, x), which).value

        for found in order(share_of):
            assert found[0] == 1
            assert 1 > found[1] > found[3]  # of so few pictures little more can be asked
            assert found[2] > found[3]
    logits = {name: network.model._fc(features) for name, features in sets.items()}
    score = {name: inception_score(values, splits=1).value for name, values in logits.items()}
    assert score["others"] > score["much noise"]
    assert score["others"] > score["much blur"]
