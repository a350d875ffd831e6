"""Statistics of reference sets: computed once, never from a damaged file; published archives."""

import errno
import io
import os
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from limner.config import load_config
from limner.data.dataset import Refused
from limner.data.open import Data, open_data
from limner.errors import LimnerError
from limner.evaluation.metrics import NamedNetwork, measure
from limner.evaluation.networks import inception
from limner.evaluation.networks.networks import FeatureNetwork, Inception
from limner.evaluation.reference import statistics as statistics_module
from limner.evaluation.reference.archives import Archive
from limner.evaluation.reference.sources import DataImages
from limner.evaluation.reference.statistics import Statistics, archive_statistics, statistics_of
from limner.files.fingerprints import digest

WIDTH = 6


class Means(FeatureNetwork):
    """Six numbers of a picture, and a count of the pictures seen."""

    def __init__(self, sha256: str = "ab" * 32, preparation: str = "as it is") -> None:
        super().__init__(
            nn.Identity(), "means", sha256, True, preparation, WIDTH, torch.device("cpu")
        )
        self.seen = 0

    def _prepare(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return images.float() / 255

    def _compute(self, prepared: Tensor) -> Tensor:
        return torch.cat([prepared.mean(dim=(1, 2)), prepared.std(dim=(1, 2))], dim=1)


class Some:
    """A source of given pictures."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.name, self.preparation = images, "some", "8 x 8 pixels"
        self.count: int | None = len(images)
        self.refused: list[Refused] = []

    def contents(self, cache: Path) -> bytes:
        return digest(self.images.numpy().tobytes())

    def batches(self, size: int) -> Iterator[Tensor]:
        yield from self.images.split(size)


def drawn(count: int = 12, side: int = 8, seed: int = 0) -> Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def measured(reference: Statistics) -> set[str]:
    network = Means()
    features = network.features(drawn(seed=1))
    records, _ = measure(NamedNetwork("means", network), features, [], reference, None, "", 0, 0)
    return {record["metric"] for record in records}


def kept(cache: Path) -> Path:
    (file,) = cache.glob("reference-*.safetensors")
    return file


def same(a: Statistics, b: Statistics) -> bool:
    assert a.features is not None
    assert b.features is not None
    tensors = [(s.features, s.gaussian.mean, s.gaussian.covariance) for s in (a, b)]
    return all(torch.equal(x, y) for x, y in zip(*tensors, strict=True)) and a.about == b.about


# The cache


def test_features_are_computed_once(tmp_path: Path) -> None:
    network, source = Means(), Some(drawn())
    told: list[tuple[int, int]] = []
    first = statistics_of(source, network, tmp_path, 5, lambda done, all: told.append((done, all)))
    assert network.seen == 12
    assert told[-1] == (12, 12)
    assert first.features is not None
    assert torch.equal(first.features, network.features(source.images))
    assert np.allclose(first.gaussian.mean, first.features.double().mean(dim=0))
    covariance = np.cov(first.features.double().numpy(), rowvar=False)
    assert np.allclose(first.gaussian.covariance, covariance, rtol=1e-9)
    assert first.gaussian.count == 12
    assert first.events == ()

    network.seen = 0
    second = statistics_of(source, network, tmp_path)
    assert network.seen == 0
    assert same(first, second)
    assert [path.name for path in tmp_path.iterdir()] == [kept(tmp_path).name]
    without = statistics_of(source, network, None)
    assert torch.equal(without.features, first.features)  # type: ignore[arg-type]
    assert network.seen == 12


def test_whatever_decides_the_features_has_its_own_file(tmp_path: Path) -> None:
    def files() -> int:
        return len(list(tmp_path.glob("reference-*.safetensors")))

    statistics_of(Some(drawn()), Means(), tmp_path)
    assert files() == 1
    statistics_of(Some(drawn()), Means(sha256="cd" * 32), tmp_path)
    assert files() == 2
    statistics_of(Some(drawn()), Means(preparation="mirrored"), tmp_path)
    assert files() == 3
    statistics_of(Some(drawn(seed=1)), Means(), tmp_path)
    assert files() == 4
    statistics_of(Some(drawn(11)), Means(), tmp_path)
    assert files() == 5
    other = Some(drawn())
    other.preparation = "8 x 8 pixels, another filter"
    statistics_of(other, Means(), tmp_path)
    assert files() == 6
    configured = Means()
    configured.config_sha256 = "ef" * 32
    statistics_of(Some(drawn()), configured, tmp_path)
    assert files() == 7
    statistics_of(Some(drawn()), Means(), tmp_path)
    assert files() == 7


@pytest.mark.parametrize("damage", ["cut", "bit", "header", "empty", "text", "other"])
def test_a_damaged_file_is_made_again_and_that_is_said(damage: str, tmp_path: Path) -> None:
    network, source = Means(), Some(drawn())
    first = statistics_of(source, network, tmp_path)
    file = kept(tmp_path)
    good = file.read_bytes()
    if damage == "cut":
        file.write_bytes(good[: len(good) // 2])
    elif damage == "bit":  # in a value, where the format itself would not see it
        file.write_bytes(good[:-20] + bytes([good[-20] ^ 1]) + good[-19:])
    elif damage == "header":  # in what it says of itself
        assert b"as it is" in good
        file.write_bytes(good.replace(b"as it is", b"as it IS"))
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "text":
        file.write_text("no such thing", "utf-8")
    else:  # a whole file, of other pictures, under this name
        statistics_of(Some(drawn(seed=1)), network, tmp_path / "other")
        file.write_bytes(kept(tmp_path / "other").read_bytes())
    network.seen = 0
    again = statistics_of(source, network, tmp_path)
    assert network.seen == 12
    assert same(first, again)
    (said,) = again.events
    assert str(file) in said
    assert "computed again" in said
    assert file.read_bytes() == good
    assert statistics_of(source, network, tmp_path).events == ()


def test_a_full_disk_costs_the_file_and_not_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        found = statistics_of(Some(drawn()), Means(), tmp_path)
    assert found.features is not None
    assert "No space left on device" in found.events[0]
    assert "cache.folder" in found.events[0]
    assert not list(tmp_path.iterdir())  # nothing half-written is left
    assert statistics_of(Some(drawn()), Means(), tmp_path).events == ()


def test_a_kill_while_it_is_written_leaves_no_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*paths: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            statistics_of(Some(drawn()), Means(), tmp_path)
    assert not list(tmp_path.glob("reference-*.safetensors"))


def test_a_file_that_may_not_be_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics_of(Some(drawn()), Means(), tmp_path)

    def denied(self: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(LimnerError, match="cannot be read: Permission denied"):
        statistics_of(Some(drawn()), Means(), tmp_path)


def test_what_can_be_measured_follows_from_what_is_there() -> None:
    whole = statistics_of(Some(drawn()), Means(), None)
    assert measured(whole) == {"Frechet distance", "kernel distance", "precision", "recall"}
    assert measured(replace(whole, features=None)) == {"Frechet distance"}
    with pytest.raises(LimnerError, match="requires at least two images, but only 1 can be read"):
        statistics_of(Some(drawn(1)), Means(), None)


# Pictures of a data set


def emoji(*overrides: str) -> Data:
    return open_data(
        load_config(
            None,
            ["data.dataset_name=emoji", "data.subset=demo", "data.image_size=16", *overrides],
        )
    )


def test_pictures_of_a_data_set_are_keyed_by_content_size_and_choice(tmp_path: Path) -> None:
    data, network = emoji(), Means()
    some = list(range(0, 60, 3))
    found = statistics_of(DataImages(data.trained, some), network, tmp_path)
    assert data.set.name not in DataImages(data.trained).name  # it may be a folder's
    assert found.features is not None
    expected = torch.stack([data.trained.load(i) for i in some])
    assert torch.equal(found.features, network.features(expected))
    assert found.about["count"] == 20
    assert "16 x 16 pixels" in found.about["resize"]
    network.seen = 0
    statistics_of(DataImages(data.trained, some), network, tmp_path)
    assert network.seen == 0
    statistics_of(DataImages(data.trained, some[:-1]), network, tmp_path)
    assert network.seen == 19
    larger = emoji("data.image_size=24")
    statistics_of(DataImages(larger.trained, some), network, tmp_path)
    assert network.seen == 39
    held_out = statistics_of(DataImages(data.held_out), network, tmp_path)
    assert held_out.about["count"] == len(data.held_out.rows)


def test_pictures_that_cannot_be_decoded_are_named(tmp_path: Path) -> None:
    folder, cache = tmp_path / "data", tmp_path / "cache"
    folder.mkdir()
    for i, image in enumerate(drawn(6, side=20)):
        Image.fromarray(image.numpy()).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a picture", "utf-8")
    (folder / "3.png").write_bytes(b"no picture")
    config = load_config(
        None,
        [
            f"data.dataset_path='{folder}'",
            "data.image_size=8",
            "data.check_pictures=false",
            "data.train_split=1.0",
        ],
    )
    data = open_data(config)
    for _ in range(2):  # computed, then from the cache
        found = statistics_of(DataImages(data.trained), Means(), cache)
        assert found.features is not None
        assert len(found.features) == 5
        assert found.gaussian.count == 5
        assert [row.key for row in found.refused] == ["3.png"]
        assert found.about["refused"] == 1
        assert "center crop" in found.about["resize"]
    # A picture that changes makes another reference.
    Image.fromarray(drawn(1, side=20, seed=5)[0].numpy()).save(folder / "0.png")
    network = Means()
    changed = statistics_of(DataImages(open_data(config).trained), network, cache)
    assert network.seen == 5
    assert not torch.equal(changed.features, found.features)  # type: ignore[arg-type]


# Published archives


def moments(width: int = WIDTH) -> dict[str, np.ndarray]:
    values = np.random.default_rng(7).normal(size=(50, width))
    return {"mu": values.mean(0), "sigma": np.cov(values, rowvar=False)}


@pytest.mark.parametrize("compressed", [False, True])
def test_a_batch_of_samples_is_read_in_pieces(compressed: bool, tmp_path: Path) -> None:
    images, path = drawn(23), tmp_path / "samples.npz"
    (np.savez_compressed if compressed else np.savez)(path, images.numpy())
    archive = Archive(path)
    assert archive.count == 23
    assert archive.gaussian() is None
    parts = list(archive.batches(10))
    assert [len(part) for part in parts] == [10, 10, 3]
    assert torch.equal(torch.cat(parts), images)
    network = Means()
    found = archive_statistics(path, network, tmp_path / "cache")
    assert torch.equal(found.features, network.features(images))  # type: ignore[arg-type]
    network.seen = 0
    archive_statistics(path, network, tmp_path / "cache")
    assert network.seen == 0


def test_pictures_are_not_all_in_memory_at_once(tmp_path: Path) -> None:
    path = tmp_path / "many.npz"
    np.savez(path, np.zeros((400, 8, 8, 3), dtype=np.uint8))
    sizes: list[int] = []

    class Watched(Means):
        def features(self, images: Tensor, batch_size: int = 32) -> Tensor:
            sizes.append(len(images))
            return super().features(images, batch_size)

    archive_statistics(path, Watched(), None)
    assert sum(sizes) == 400
    assert max(sizes) <= statistics_module.READ_AT_ONCE


class Standard(Inception):
    """Stands for Inception-v3 with the standard weights, at a width that tests can afford."""

    def __init__(self, verified: bool = True) -> None:
        means = Means()
        FeatureNetwork.__init__(
            self, nn.Identity(), "Inception-v3", inception.SHA256 if verified else "0" * 64,
            verified, "", WIDTH, torch.device("cpu"),
        )  # fmt: skip
        self._prepare, self._compute = means._prepare, means._compute  # type: ignore[method-assign]


def test_an_adm_reference_gives_fid_by_its_statistics_and_the_rest_by_its_pictures(
    tmp_path: Path,
) -> None:
    images, published, path = drawn(9), moments(), tmp_path / "VIRTUAL_imagenet.npz"
    np.savez(path, arr_0=images.numpy(), mu_s=np.zeros(3), sigma_s=np.eye(3), **published)
    found = archive_statistics(path, Standard(), tmp_path)
    assert np.allclose(found.gaussian.mean, published["mu"])
    assert np.allclose(found.gaussian.covariance, published["sigma"])
    assert found.gaussian.count is None  # of the whole data set, whose size it does not say
    assert found.features is not None
    assert torch.equal(found.features, Means().features(images))
    assert "as published" in found.about["moments"]
    # Another network has nothing of those statistics.
    for network in (Means(), Standard(verified=False)):
        other = archive_statistics(path, network, tmp_path)
        assert other.gaussian.count == 9
        assert "are not used" in other.events[0]
        assert "moments" not in other.about


def test_statistics_alone_give_fid_alone(tmp_path: Path) -> None:
    published, path = moments(), tmp_path / "fid_stats.npz"
    np.savez(path, **published)
    found = archive_statistics(path, Standard(), tmp_path)
    assert found.features is None
    assert np.allclose(found.gaussian.covariance, published["sigma"])
    assert "pytorch-fid resizes differently" in found.events[0]
    single = {name: value.astype(np.float32) for name, value in published.items()}
    np.savez(path, **single)
    assert archive_statistics(path, Standard(), None).gaussian.mean.dtype == torch.float64
    with pytest.raises(LimnerError, match="no images, so Frechet distance"):
        archive_statistics(path, Means(), None)
    with pytest.raises(LimnerError, match=r"unverified weights 000000000000"):
        archive_statistics(path, Standard(verified=False), None)
    np.savez(path, **moments(5))
    with pytest.raises(LimnerError, match="statistics of 5 features, but Inception-v3 has 6"):
        archive_statistics(path, Standard(), None)


def test_what_is_no_reference_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"

    def refused(words: str, **arrays: np.ndarray) -> None:
        np.savez(path, **arrays)
        with pytest.raises(LimnerError, match=words) as error:
            archive_statistics(path, Standard(), None)
        assert str(path) in str(error.value)

    images, known = drawn().numpy(), moments()
    refused("neither images .* found: images", images=images)
    refused(r"arr_0 should be uint8 images .*float64", arr_0=images / 255)
    refused(r"arr_0 should be uint8 images", arr_0=images.transpose(0, 3, 1, 2))
    refused(r"arr_0 should be uint8 images", arr_0=np.asfortranarray(images))
    refused("one of mu and sigma", mu=known["mu"])
    refused(r"sigma should be numbers \[width, width\]", mu=known["mu"], sigma=known["mu"])
    refused("not symmetric", mu=known["mu"], sigma=known["sigma"] + np.triu(np.ones((6, 6)), 1))
    refused("NaN", mu=known["mu"] * np.nan, sigma=known["sigma"])
    # An array of objects would be unpickled, and what is unpickled can run anything.
    refused("damaged|should be", arr_0=np.array([{"a": 1}], dtype=object))
    refused("should be", mu=np.array(["a"], dtype=object), sigma=known["sigma"])
    with pytest.raises(LimnerError, match="cannot be read"):
        Archive(tmp_path / "none.npz")
    path.write_bytes(b"<html>")
    with pytest.raises(LimnerError, match="cannot be read"):
        Archive(path)


def test_a_damaged_archive_is_no_reference(tmp_path: Path) -> None:
    path, images = tmp_path / "reference.npz", drawn(40)
    np.savez(path, images.numpy())
    good = path.read_bytes()
    path.write_bytes(good[:3000])  # an interrupted download
    with pytest.raises(LimnerError, match="cannot be read"):
        archive_statistics(path, Means(), None)
    path.write_bytes(good[:3000] + bytes([good[3000] ^ 1]) + good[3001:])
    with pytest.raises(LimnerError, match="damaged"):
        archive_statistics(path, Means(), None)
    # A header that claims more than is there must not be believed.
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 256, 256, 3)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue() + bytes(100))
    with pytest.raises(LimnerError, match="truncated"):
        archive_statistics(path, Means(), None)


def test_a_reference_that_changes_is_read_again(tmp_path: Path) -> None:
    path, network = tmp_path / "reference.npz", Means()
    for seed in (0, 1):
        np.savez(path, drawn(seed=seed).numpy())
        found = archive_statistics(path, network, tmp_path / "cache")
        assert torch.equal(found.features, network.features(drawn(seed=seed)))  # type: ignore[arg-type]
