"""Distances between sets of pictures: against their definitions, and the right way round."""

import numpy as np
import pytest
import torch
from torch import Tensor

from limner.config import load_config
from limner.data.open import open_data
from limner.errors import LimnerError
from limner.evaluation.networks import efficientnet
from limner.metrics.kernel_distance import kernel_distance
from limner.metrics.memorisation import nearest_ratio


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_kernel_distance_is_the_mean_over_all_pairs() -> None:
    a, b = randn(5, 3).numpy().astype(float), randn(4, 3, seed=1).numpy().astype(float) + 0.5

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return (float(x @ y) / 3 + 1) ** 3

    within_a = np.mean([k(a[i], a[j]) for i in range(5) for j in range(5) if i != j])
    within_b = np.mean([k(b[i], b[j]) for i in range(4) for j in range(4) if i != j])
    between = np.mean([k(x, y) for x in a for y in b])
    found = kernel_distance(torch.from_numpy(a).float(), torch.from_numpy(b).float())
    assert found == pytest.approx(within_a + within_b - 2 * between, rel=1e-5)


def test_the_kernel_distance_is_unbiased_and_grows() -> None:
    pairs = [(randn(20, 8, seed=2 * s), randn(20, 8, seed=2 * s + 1)) for s in range(200)]
    alike = np.mean([kernel_distance(a, b) for a, b in pairs])
    apart = [kernel_distance(pairs[0][0], pairs[0][1] + shift) for shift in (0.5, 1.0, 2.0)]
    spread = np.std([kernel_distance(a, b) for a, b in pairs]) / len(pairs) ** 0.5
    assert abs(alike) < 3 * spread
    assert 0 < apart[0] < apart[1] < apart[2]
    with pytest.raises(LimnerError, match="at least two images"):
        kernel_distance(randn(1, 8), randn(5, 8))


def test_copies_are_told_from_new_pictures() -> None:
    trained, held_out = randn(40, 3, 32, 32), randn(30, 3, 32, 32, seed=1)
    assert nearest_ratio(trained[:10] + 0.001, held_out, trained) < 0.01
    assert nearest_ratio(randn(10, 3, 32, 32, seed=2), held_out, trained) == pytest.approx(
        1, abs=0.1
    )
    half = (trained[:10] + randn(10, 3, 32, 32, seed=2)) / 2
    assert 0.2 < nearest_ratio(half, held_out, trained) < 0.8
    # Latents may be smaller than what pictures are averaged to.
    assert nearest_ratio(trained[:, :, :4, :4], held_out[:, :, :4, :4], trained[:, :, :4, :4]) == 0


def test_features_pad_as_tensorflow_does() -> None:
    """SAME: ceil(size / stride) places; what is missing is added at the end first."""
    layer = efficientnet.SameConv2d(1, 1, 3, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(9.0).view(1, 1, 3, 3))
    x = randn(1, 1, 6, 7)
    padded = torch.nn.functional.pad(x, (1, 1, 0, 1))
    torch.testing.assert_close(layer(x), torch.nn.functional.conv2d(padded, layer.weight, stride=2))


def test_the_feature_network_sees_what_is_there() -> None:
    data = open_data(load_config({"data": {"dataset_name": "emoji", "subset": "all"}}))
    names = {row.captions[0]: i for i, row in enumerate(data.trained.rows)}
    image = data.trained.load(names["strawberry"])[None]
    network = efficientnet.open_network()
    found = efficientnet.features(network, torch.cat([image, image.flip(2), 255 - image]))
    assert found.shape == (3, efficientnet.WIDTH)
    strawberry, bikini = 949, 445  # of ImageNet's classes
    scores = network._fc(found)
    assert int((scores[0] > scores[0, strawberry]).sum()) < 5
    assert scores[0, strawberry] > scores[0, bikini]
    near, far = (found[0] - found[1]).norm(), (found[0] - found[2]).norm()
    assert near < far


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "SHA256", "0" * 64)
    with pytest.raises(LimnerError, match="hash"):
        efficientnet.open_network()
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: None)
    with pytest.raises(LimnerError, match=r'pip install "limner\[evaluation\]"'):
        efficientnet.open_network()
