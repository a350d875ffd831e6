"""Autoencoders of three families: their latents normalised, slicing and tiling exact."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import pretrained
import pytest
import torch

from limner.config import VaeConfig
from limner.errors import LimnerError
from limner.pretrained import autoencoder, strips
from limner.pretrained.autoencoder import IdentityAutoencoder, PretrainedAutoencoder

CPU, F32 = torch.device("cpu"), torch.float32
MAKERS = {
    "4 channels": pretrained.tiny_autoencoder,
    "16 channels": pretrained.tiny_16_channels,
    "tiny": pretrained.tiny_taesd,
    "dc": pretrained.tiny_dc,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("autoencoders")
    return {name: make(top / name.replace(" ", "")) for name, make in MAKERS.items()}


def opened(folder: Path, **settings: Any) -> PretrainedAutoencoder:
    space = PretrainedAutoencoder(VaeConfig(pretrained_model_name=str(folder), **settings))
    space.load(CPU, F32)
    return space


def images(height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


# What the pipelines of diffusers do with each family, written out.
EXPECTED: dict[
    str, tuple[Callable[[Any], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]
] = {
    "4 channels": (lambda e: e.latent_dist.mode() * 0.18215, lambda z: z / 0.18215),
    "16 channels": (
        lambda e: (e.latent_dist.mode() - 0.1159) * 0.3611,
        lambda z: z / 0.3611 + 0.1159,
    ),
    "tiny": (lambda e: e.latents, lambda z: z),
    "dc": (lambda e: e.latent * 0.41, lambda z: z / 0.41),
}
CLASSES = {"tiny": "AutoencoderTiny", "dc": "AutoencoderDC"}


@pytest.mark.parametrize("name", MAKERS)
def test_latents_are_those_of_diffusers_normalised_as_the_family_requires(
    name: str, folders: dict[str, Path]
) -> None:
    space, x = opened(folders[name]), images()
    family = getattr(diffusers, CLASSES.get(name, "AutoencoderKL"))
    model = family.from_pretrained(folders[name])
    normalised, back = EXPECTED[name]
    with torch.no_grad():
        latents = normalised(model.encode(x))
        decoded = model.decode(back(latents)).sample
    assert torch.allclose(space.encode(x), latents, atol=1e-5)
    assert torch.allclose(space.decode(latents), decoded, atol=1e-5)
    assert space.encode(x).shape == (2, space.channels, 32 // space.downsampling, 8)
    assert space.downsampling == 4
    assert space.decode(latents).dtype == torch.float32


def test_means_and_deviations_of_each_channel_are_used(tmp_path: Path) -> None:
    mean, std = [0.1, -0.2, 0.3, 0.0], [1.0, 2.0, 0.5, 4.0]
    settings: dict[str, Any] = {"latents_mean": mean, "latents_std": std, "scaling_factor": 0.5}
    folder = pretrained.tiny_autoencoder(tmp_path / "vae", **settings)
    model, x = diffusers.AutoencoderKL.from_pretrained(folder), images()
    with torch.no_grad():
        raw = model.encode(x).latent_dist.mode()
    each = [torch.tensor(values).reshape(1, 4, 1, 1) for values in (mean, std)]
    space = opened(folder)
    latents = space.encode(x)
    assert torch.allclose(latents, (raw - each[0]) * 0.5 / each[1], atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(space.decode(latents), model.decode(raw).sample, atol=1e-5)


def test_an_old_config_that_does_not_say_the_scaling_has_the_usual_one(tmp_path: Path) -> None:
    folder = pretrained.tiny_autoencoder(tmp_path / "vae")
    expected = opened(folder).encode(images())
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config.pop("scaling_factor") == 0.18215
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    assert torch.equal(opened(folder).encode(images()), expected)


@pytest.mark.parametrize("stages", [2, 4])
def test_any_downsampling_factor(stages: int, tmp_path: Path) -> None:
    diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        block_out_channels=(8,) * stages,
        norm_num_groups=4,
    ).save_pretrained(tmp_path / "vae")
    space = opened(tmp_path / "vae")
    assert space.downsampling == 2 ** (stages - 1)
    assert space.encode(images()).shape[-1] == 32 // space.downsampling


@pytest.mark.parametrize("name", MAKERS)
def test_slicing_and_tiling_change_nothing_beyond_rounding(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, x = opened(folders[name]), images(64, 48)
    latents = plain.encode(x)
    decoded = plain.decode(latents)
    sliced = opened(folders[name], use_slicing=True)
    tiled = opened(folders[name], use_tiling=True)
    worked = []
    convolve = strips._convolve
    monkeypatch.setattr(
        strips, "_convolve", lambda *a: worked.append(a[2].shape[-2]) or convolve(*a)
    )
    for rows in (7, 16, 31):  # not all of them divide 64
        monkeypatch.setattr(autoencoder, "in_strips", partial(strips.in_strips, rows=rows))
        for space in (sliced, tiled):
            assert torch.allclose(space.encode(x), latents, atol=2e-5)
            assert torch.allclose(space.decode(latents), decoded, atol=2e-5)
    assert worked  # in strips, and only what is higher than a strip
    assert min(worked) > 7


def test_after_tiling_the_layers_are_as_they_were(folders: dict[str, Path]) -> None:
    space = opened(folders["4 channels"], use_tiling=True)
    space.encode(images())
    assert not any("forward" in vars(module) for module in space.model.modules())


def test_no_strip_is_larger_than_it_may_be(folders: dict[str, Path]) -> None:
    space = opened(folders["4 channels"])
    seen = []
    convolution = torch.nn.functional.conv2d

    def watched(x: torch.Tensor, weight: torch.Tensor, *others: Any) -> torch.Tensor:
        seen.append(x.shape[-2])
        return convolution(x, weight, *others)

    with pytest.MonkeyPatch.context() as patch, strips.in_strips(space.model, rows=8):
        patch.setattr(torch.nn.functional, "conv2d", watched)
        space.encode(images(64, 64))
    assert max(seen) <= 2 * 8 + 1  # a stride of two takes two rows for one, and one beyond


def test_a_size_that_does_not_divide_names_the_nearest(folders: dict[str, Path]) -> None:
    with pytest.raises(LimnerError, match=r"data\.image_size: 30 x 30 is not divisible by 4.*32"):
        opened(folders["4 channels"]).encode(images(30, 30))


def test_unloading_and_loading_again_is_the_same(folders: dict[str, Path]) -> None:
    space = opened(folders["4 channels"])
    first = space.encode(images())
    space.unload()
    assert space.model is None
    space.load(CPU, F32)
    assert torch.equal(space.encode(images()), first)


def test_bfloat16_is_near_and_comes_out_in_float32(folders: dict[str, Path]) -> None:
    space, exact = opened(folders["4 channels"]), opened(folders["4 channels"])
    space.load(CPU, torch.bfloat16)
    assert next(space.model.parameters()).dtype == torch.bfloat16
    latents = space.encode(images())
    assert latents.dtype == torch.float32
    assert torch.allclose(latents, exact.encode(images()), atol=0.02)


def test_what_cannot_be_used_is_named(tmp_path: Path, folders: dict[str, Path]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    weights = (folders["4 channels"] / "diffusion_pytorch_model.safetensors").read_bytes()
    (other / "diffusion_pytorch_model.safetensors").write_bytes(weights)
    (other / "config.json").write_text('{"_class_name": "VQModel"}', "utf-8")
    with pytest.raises(LimnerError, match="describes a VQModel; supported autoencoders"):
        PretrainedAutoencoder(VaeConfig(pretrained_model_name=str(other)))

    config = json.loads((folders["4 channels"] / "config.json").read_text("utf-8"))
    (other / "config.json").write_text(json.dumps(config | {"layers_per_block": 2}), "utf-8")
    with pytest.raises(LimnerError, match=r"lacks \d+ weights of a AutoencoderKL, such as"):
        opened(other)
    (other / "config.json").write_text(json.dumps(config), "utf-8")
    (other / "diffusion_pytorch_model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(LimnerError, match="cannot be loaded"):
        opened(other)


def test_pixel_space_does_nothing() -> None:
    space, x = IdentityAutoencoder(), images()
    space.load(CPU, F32)
    assert space.encode(x) is x
    assert space.decode(x) is x
    assert (space.channels, space.downsampling) == (3, 1)
