"""An autoencoder of one's own: it learns, it is measured honestly, and what it writes is used."""

import json
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from half_written import dead, hidden, left_behind
from small_autoencoder import SMALL

from limner.apps.autoencoder.losses import kl_divergence, psnr, reconstruction_loss, ssim
from limner.apps.autoencoder.train import train_autoencoder
from limner.cli import main
from limner.config import Config, VaeConfig
from limner.data.open import open_data
from limner.errors import LimnerError
from limner.pretrained.autoencoder import PretrainedAutoencoder
from limner.training.muon import Muon

Build = Callable[..., Config]


def image(seed: int, side: int = 24) -> torch.Tensor:
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed))


# Losses and measures


def test_a_perfect_copy_costs_nothing_and_is_perfectly_similar() -> None:
    x = image(0)
    assert float(reconstruction_loss(x, x, 0.5)) == 0
    assert float(ssim(x, x)) == pytest.approx(1, abs=1e-6)
    assert float(psnr(x, x)) == float("inf")
    assert float(psnr(x, x + 0.1)) == pytest.approx(20, abs=1e-4)  # 10 log10(1 / 0.01)


def test_edges_count_beside_pixels() -> None:
    x, y = torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)
    y[..., 8:] = 1
    flat = torch.full_like(x, 0.5)  # as far from y in the mean, without its edge
    pixels, edges = reconstruction_loss(y, x, 0.0), reconstruction_loss(y, x, 1.0)
    assert float(pixels) == pytest.approx(0.5)
    assert float(reconstruction_loss(flat, x, 1.0)) == pytest.approx(0.5)
    # The step is one of 15, 7, and 3 differences across at the three scales; none is down.
    assert float(edges - pixels) == pytest.approx(1 / 15 + 1 / 7 + 1 / 3, rel=1e-5)


def test_ssim_is_the_published_formula() -> None:
    a, b = image(1, 13).double(), image(2, 13).double()
    offsets = np.arange(11) - 5
    gaussian = np.exp(-(offsets**2) / 4.5)
    window = np.outer(gaussian, gaussian) / gaussian.sum() ** 2
    values = []
    for channel in range(3):
        for top in range(3):
            for left in range(3):
                x, y = (p[0, channel, top : top + 11, left : left + 11].numpy() for p in (a, b))
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                cov = (window * (x - mx) * (y - my)).sum()
                upper = (2 * mx * my + 1e-4) * (2 * cov + 9e-4)
                values.append(upper / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    assert float(ssim(a.float(), b.float())) == pytest.approx(np.mean(values), abs=1e-5)


def test_the_divergence_of_a_normal_distribution_from_itself_is_none() -> None:
    mean, logvar = torch.zeros(4), torch.zeros(4)
    assert float(kl_divergence(mean, logvar)) == 0
    given = torch.distributions.Normal(torch.tensor(2.0), torch.tensor(0.5))
    expected = torch.distributions.kl_divergence(given, torch.distributions.Normal(0.0, 1.0))
    found = kl_divergence(torch.tensor([2.0]), torch.tensor([0.25]).log())
    assert float(found) == pytest.approx(float(expected))


def test_muon_makes_a_convolution_s_update_orthogonal() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(8, 16, 3, 3))
    before = weight.detach().clone()
    weight.grad = torch.randn(8, 16, 3, 3)
    Muon([weight], lr=1.0).step()
    update = (before - weight.detach()).reshape(8, -1)
    singular = torch.linalg.svdvals(update)
    assert float(singular.max() / singular.min()) < 2
    assert float(update.square().mean().sqrt()) == pytest.approx(
        0.2 * (144**0.5) * 8**0.5 / (8 * 144) ** 0.5, rel=0.3
    )


# The command


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder after 200 updates on shapes of 32 pixels."""
    folder = tmp_path_factory.mktemp("autoencoder") / "vae"
    words = ["data.dataset_name=shapes", "training.device=cpu", "training.mixed_precision=no"]
    assert main(["train-autoencoder", "--output", str(folder), *words, *SMALL,
                 "autoencoder.max_steps=200"]) == 0  # fmt: skip
    return folder


def test_it_learns_and_says_how_well(fitted: Path) -> None:
    results = json.loads((fitted / "results.json").read_text("utf-8"))
    assert results["trained"]["psnr"] > 16  # white paper for each picture would be 9
    assert results["held_out"]["psnr"] > 16
    assert results["trained"]["count"] == results["pictures"]["trained"]
    assert (results["steps"], results["crops"]) == (200, 1600)
    assert (results["downsampling"], results["latent_channels"]) == (4, 4)
    assert (fitted / "reconstructions.png").stat().st_size > 1000


def test_what_it_writes_is_a_diffusers_autoencoder_with_normal_latents(
    fitted: Path, tiny_config: Build
) -> None:
    assert isinstance(diffusers.AutoencoderKL.from_pretrained(fitted), diffusers.AutoencoderKL)
    space = PretrainedAutoencoder(VaeConfig(pretrained_model_name=str(fitted)))
    space.load(torch.device("cpu"), torch.float32)
    trained = open_data(tiny_config(*SMALL)).trained
    images = torch.stack([trained.tensor(i) for i in range(len(trained.rows))])
    latents = space.encode(images)
    assert float(latents.mean()) == pytest.approx(0, abs=0.02)
    assert float(latents.std()) == pytest.approx(1, abs=0.02)
    error = (space.decode(latents).clamp(-1, 1) - images) / 2
    results = json.loads((fitted / "results.json").read_text("utf-8"))
    found = float((-10 * error.square().mean(dim=(1, 2, 3)).log10()).mean())
    assert found == pytest.approx(results["trained"]["psnr"], abs=0.05)


def test_a_model_trains_in_its_latents(fitted: Path, tiny_config: Build, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    overrides = ["data.image_size=32", "model.patch_size=2", f"cache.folder='{tmp_path / 'cache'}'"]
    config = tiny_config(*overrides, f"vae.pretrained_model_name='{fitted}'")
    path.write_text(config.to_yaml(), "utf-8")
    assert main(["train", "--config", str(path)]) == 0


def test_the_same_seed_gives_the_same_autoencoder(tiny_config: Build, tmp_path: Path) -> None:
    config = tiny_config(*SMALL, "autoencoder.max_steps=3")
    left_behind(tmp_path / "b-unfinished", "deleted", dead())  # by a killed one, at its very end
    for name in ("a", "b"):
        train_autoencoder(config, tmp_path / name)
    assert hidden(tmp_path) == []
    file = "diffusion_pytorch_model.safetensors"
    a, b = (diffusers.AutoencoderKL.from_pretrained(tmp_path / name).state_dict() for name in "ab")
    assert (tmp_path / "a" / file).is_file()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("downsampling", [2, 8])
def test_other_downsampling_and_channels(
    downsampling: int, tiny_config: Build, tmp_path: Path
) -> None:
    settings = [f"autoencoder.downsampling={downsampling}", "autoencoder.latent_channels=6"]
    train_autoencoder(tiny_config(*SMALL, *settings, "autoencoder.max_steps=1"), tmp_path / "vae")
    space = PretrainedAutoencoder(VaeConfig(pretrained_model_name=str(tmp_path / "vae")))
    assert (space.downsampling, space.channels) == (downsampling, 6)


def test_nothing_of_anybody_s_is_overwritten(tiny_config: Build, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years", "utf-8")
    with pytest.raises(
        LimnerError, match=r"is not an earlier autoencoder \(it contains thesis\.txt\)"
    ):
        train_autoencoder(tiny_config(*SMALL), tmp_path / "mine")
    with pytest.raises(LimnerError, match=r"image_size: 30 is not divisible by .*downsampling 4"):
        train_autoencoder(
            tiny_config(*SMALL, "data.image_size=30", "model.patch_size=2"), tmp_path / "vae"
        )
    assert (tmp_path / "mine" / "thesis.txt").read_text("utf-8") == "years"
