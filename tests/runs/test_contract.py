"""Every key of the tutorial's YAML files loads unchanged and does what its name says."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import test_contract_training
import test_other_programs
import torch
import yaml
from contract import SHOWN, TUTORIAL, contract_keys, shows
from PIL import Image
from pretrained import tiny_autoencoder, tiny_t5
from torch import nn

from limner.config import Config, VaeConfig, known_keys, load_config
from limner.data.open import open_data
from limner.diffusion.objective import build_objective
from limner.errors import LimnerError
from limner.models.text_to_image import TextToImage, build_model
from limner.pretrained.autoencoder import PretrainedAutoencoder
from limner.text.batch import TextEmbeddings
from limner.text.conditioning import TextConditioning
from limner.training.batches import load_batches
from limner.training.monitor import throughput
from limner.training.trainer import Trainer

Build = Callable[..., Config]


def test_no_key_of_the_contract_is_without_a_test() -> None:
    # Imported, so that their tests are counted.
    assert test_contract_training.shows is test_other_programs.shows is shows
    keys = contract_keys()
    assert len(keys) == len(set(keys)) == 48
    assert sorted(SHOWN) == sorted(keys)
    assert set(keys) <= set(known_keys())
    written = [f"{s}.{k}" for s, inner in yaml.safe_load(TUTORIAL).items() for k in inner]
    assert written == keys


def test_the_tutorials_file_loads_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "train_config.yaml"
    path.write_text(TUTORIAL, encoding="utf-8")
    loaded = load_config(path).model_dump(mode="json")
    meant = yaml.safe_load(TUTORIAL)
    # YAML reads 1e-4 as words and an unquoted no as false.
    meant["training"] |= {"learning_rate": 1e-4, "mixed_precision": "no"}
    meant["optimizer"]["type"] = "adamw"
    meant["model"]["norm_eps"] = 1e-5
    for section, keys in meant.items():
        assert {key: loaded[section][key] for key in keys} == keys


@pytest.mark.parametrize("key", contract_keys())
def test_each_key_loads_alone_and_as_an_override(key: str) -> None:
    section, name = key.split(".")
    value = yaml.safe_load(TUTORIAL)[section][name]
    text = yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
    assert load_config({section: {name: value}}) == load_config(None, [f"{key}={text}"])


def test_the_tutorials_file_trains(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "matmul_peak", lambda device, dtype: 1e12)
    path = tmp_path / "train_config.yaml"
    path.write_text(TUTORIAL, encoding="utf-8")
    smaller = [
        f"data.dataset_path='{folder}'", "data.image_size=8", "model.hidden_size=64",
        "model.num_layers=1", "model.num_heads=2", "model.attention_head_dim=32",
        "training.num_epochs=1",
        "training.num_workers=0", f"training.output_dir='{tmp_path / 'outputs'}'",
        "sampling.num_inference_steps=1",
    ]  # fmt: skip
    state = Trainer(load_config(path, smaller)).train()
    assert (state.step, state.images) == (math.ceil(36 / 16), 48)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures of one colour each, with the contract's metadata.json."""
    path = tmp_path_factory.mktemp("data")
    (path / "images").mkdir()
    lines = []
    for number in range(40):
        name = f"images/image_{number:06d}.png"
        Image.fromarray(np.full((8, 8, 3), 6 * number, dtype=np.uint8)).save(path / name)
        lines.append(f'{{"image": "{name}", "text": "grey number {number}"}}')
    (path / "metadata.json").write_text(f"[{', '.join(lines)}]", encoding="utf-8")
    return path


def from_folder(folder: Path) -> list[str]:
    return ["data.dataset_name=null", "data.num_samples=null", f"data.dataset_path='{folder}'"]


def keys_of(config: Config) -> tuple[set[str], set[str]]:
    data = open_data(config)
    return {row.key for row in data.trained.rows}, {row.key for row in data.held_out.rows}


def model_of(config: Config) -> TextToImage:
    torch.manual_seed(0)
    return build_model(config, 300)


# data


@shows("data.dataset_name", "data.dataset_path")
def test_the_data_set_is_the_one_that_is_named(folder: Path, tiny_config: Build) -> None:
    assert open_data(tiny_config()).set.name == "shapes"
    assert open_data(tiny_config("data.dataset_name=Emoji", "data.subset=demo")).set.name == "emoji"
    own = open_data(tiny_config(*from_folder(folder)))
    assert own.set.name == str(folder)
    assert {row.key for row in own.set.rows} == {f"images/image_{n:06d}.png" for n in range(40)}


@shows("data.image_size")
@pytest.mark.parametrize("size", [8, 24])
def test_pictures_are_trained_at_image_size(size: int, tiny_config: Build) -> None:
    trainer = Trainer(tiny_config(f"data.image_size={size}"))
    batch = next(load_batches(trainer.run))
    assert batch.image.shape == batch.noise.shape == (4, 3, size, size)


@shows("data.num_samples")
def test_num_samples_caps_the_rows_and_more_of_them_keep_the_fewer(
    folder: Path, tiny_config: Build
) -> None:
    few, more, all_rows = (
        set.union(*keys_of(tiny_config(*from_folder(folder), f"data.num_samples={count}")))
        for count in (5, 12, "null")
    )
    assert (len(few), len(more), len(all_rows)) == (5, 12, 40)
    assert few < more < all_rows


@shows("data.train_split")
def test_train_split_is_the_share_that_is_trained_on(folder: Path, tiny_config: Build) -> None:
    half = keys_of(tiny_config(*from_folder(folder), "data.train_split=0.5"))
    most = keys_of(tiny_config(*from_folder(folder), "data.train_split=0.8"))
    whole = keys_of(tiny_config(*from_folder(folder), "data.train_split=1"))
    assert 10 <= len(half[1]) <= 30
    assert 2 <= len(most[1]) <= 16
    assert most[1] < half[1]
    for trained, held_out in (half, most, whole):
        assert not trained & held_out
        assert len(trained | held_out) == 40
    assert whole[1] == set()


# model


@shows("model.hidden_size", "model.num_layers", "model.num_heads", "model.patch_size")
@shows("model.mlp_ratio")
@pytest.mark.parametrize("architecture", ["modern", "dit"])
def test_the_model_has_the_sizes_that_were_asked_for(architecture: str, tiny_config: Build) -> None:
    sizes = ["model.hidden_size=96", "model.num_layers=3", "model.num_heads=4"]
    more = ["model.patch_size=8", "model.mlp_ratio=2", f"model.architecture={architecture}"]
    model = model_of(tiny_config(*sizes, *more)).denoiser
    block = model.blocks[0]
    modern = architecture == "modern"
    attention = block if modern else block.attn
    assert len(model.blocks) == 3
    assert attention.num_heads == 4
    assert attention.qkv.weight.shape == (3 * 96, 96)
    inner = block.mlp.out.in_features if modern else block.mlp.fc1.out_features
    # A gated feed-forward has three matrices for two: two thirds of the width, in whole 32s.
    assert inner == (128 if modern else 192)
    tokens: list[torch.Size] = []
    block.register_forward_hook(lambda _, inputs, output: tokens.append(output.shape))
    x = torch.randn(2, 3, 16, 24)
    text = TextConditioning(torch.randn(2, 5, 96 // 64 * 64), torch.ones(2, 5, dtype=torch.bool))
    assert model(x, torch.tensor([10.0, 900.0]), text).shape == x.shape
    assert tokens == [(2, (16 // 8) * (24 // 8), 96)]


@shows("model.in_channels", "model.out_channels")
def test_channels_are_those_of_what_is_denoised(tiny_config: Build) -> None:
    ids = torch.ones(1, 4, dtype=torch.long)
    for channels, vae in ((3, "null"), (4, "stabilityai/sd-vae-ft-mse")):
        both = [f"model.{side}_channels={channels}" for side in ("in", "out")]
        model = model_of(tiny_config(*both, f"vae.pretrained_model_name={vae}"))
        x = torch.randn(1, channels, 16, 16)
        assert model(x, torch.ones(1), ids).shape == x.shape
    with pytest.raises(LimnerError, match=r"model\.in_channels: 4, but pictures in pixel space"):
        tiny_config("model.in_channels=4")
    with pytest.raises(LimnerError, match=r"model\.out_channels: 6 must equal model\.in_channels"):
        tiny_config("model.out_channels=6")


@shows("model.dropout")
@pytest.mark.parametrize("architecture", ["modern", "dit"])
def test_dropout_is_noise_in_training_only(architecture: str, tiny_config: Build) -> None:
    def outputs(dropout: float, training: bool) -> tuple[torch.Tensor, torch.Tensor]:
        which = [f"model.dropout={dropout}", f"model.architecture={architecture}"]
        model = model_of(tiny_config(*which))
        for parameter in model.parameters():  # freshly initialised, the blocks add nothing
            nn.init.normal_(parameter, std=0.2)
        model.train(training)
        x, ids = torch.ones(1, 3, 16, 16), torch.ones(1, 4, dtype=torch.long)
        return model(x, torch.ones(1), ids), model(x, torch.ones(1), ids)

    assert torch.equal(*outputs(0.0, training=True))
    assert torch.equal(*outputs(0.5, training=False))
    assert not torch.allclose(*outputs(0.5, training=True))


# vae, text_encoder


@shows("vae.pretrained_model_name", "text_encoder.pretrained_model_name")
def test_pretrained_parts_are_what_is_drawn_in_and_read_with(
    tiny_config: Build, tmp_path: Path
) -> None:
    vae, text = tiny_autoencoder(tmp_path / "vae"), tiny_t5(tmp_path / "t5")
    trainer = Trainer(
        tiny_config(
            f"vae.pretrained_model_name='{vae}'",
            f"text_encoder.pretrained_model_name='{text}'",
            f"cache.folder='{tmp_path / 'cache'}'",
        )
    )
    batch = next(load_batches(trainer.run))
    assert batch.image.shape == (4, 4, 4, 4)  # four channels, a fourth of 16 pixels
    assert isinstance(batch.text, TextEmbeddings)
    assert batch.text.states.shape[-1] == 16
    step = trainer.run.train_step
    assert torch.isfinite(step.loss(batch, step.timesteps(batch))).all()


@shows("vae.use_slicing")
def test_slicing_decodes_one_picture_at_a_time(tmp_path: Path) -> None:
    folder = str(tiny_autoencoder(tmp_path / "vae"))
    decoded = []
    for slicing, expected in ((False, [3]), (True, [1, 1, 1])):
        space = PretrainedAutoencoder(VaeConfig(pretrained_model_name=folder, use_slicing=slicing))
        space.load(torch.device("cpu"), torch.float32)
        sizes: list[int] = []
        space.model.decoder.register_forward_pre_hook(
            lambda _, inputs, sizes=sizes: sizes.append(len(inputs[0]))
        )
        latents = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        decoded.append(space.decode(latents))
        assert sizes == expected
    assert torch.allclose(*decoded, atol=1e-5)


# scheduler


@shows("scheduler.num_train_timesteps", "scheduler.beta_start", "scheduler.beta_end")
@shows("scheduler.beta_schedule")
@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
def test_the_betas_are_those_that_were_asked_for(kind: str) -> None:
    betas = {"beta_start": 0.001, "beta_end": 0.03, "beta_schedule": kind}
    config = load_config({"scheduler": {"num_train_timesteps": 100, **betas}})
    path = build_objective(config).noise_schedule
    power = 1.0 if kind == "linear" else 0.5
    expected = torch.linspace(0.001**power, 0.03**power, 100, dtype=torch.float64) ** (1 / power)
    alphas = path.alpha(torch.arange(100, dtype=torch.float64)) ** 2
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
    torch.testing.assert_close(1 - alphas / before, expected)
    assert path.inference_timesteps(20)[0] == 99
    assert path.training_timesteps(torch.tensor([0.0, 0.999])).tolist() == [0, 99]


@shows("scheduler.beta_schedule")
def test_the_cosine_schedule_is_another() -> None:
    config = load_config({"scheduler": {"beta_schedule": "squaredcos_cap_v2"}})
    middle = build_objective(config).noise_schedule.alpha(torch.tensor([499.0])) ** 2
    # Nichol & Dhariwal 2021, equation 17, half way.
    wave = [math.cos((x + 0.008) / 1.008 * math.pi / 2) ** 2 for x in (0, 0.5)]
    assert float(middle) == pytest.approx(wave[1] / wave[0], rel=1e-6)


@shows("scheduler.prediction_type")
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "velocity"])
def test_the_network_learns_what_prediction_type_names(prediction: str) -> None:
    objective = build_objective(load_config({"scheduler": {"prediction_type": prediction}}))
    x0, noise = torch.randn(2, 2, 3, 4, 4).unbind()
    t = torch.tensor([100.0, 700.0])
    alpha, sigma = (
        f(t)[:, None, None, None]
        for f in (objective.noise_schedule.alpha, objective.noise_schedule.sigma)
    )
    expected = {
        "epsilon": noise,
        "v_prediction": alpha * noise - sigma * x0,
        "sample": x0,
        "velocity": noise - x0,
    }[prediction]
    torch.testing.assert_close(objective.target(x0, noise, t), expected)
    assert objective.loss(expected, x0, noise, t).max() < 1e-9
