"""Every key of the tutorial's YAML files loads unchanged and does what its name says."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import limner.training.trainer
from limner import device as devices
from limner.checkpoint import checkpoints
from limner.config import Config, known_keys, load_config
from limner.data.sources import open_data
from limner.diffusion.objective import build_objective
from limner.errors import LimnerError
from limner.models.text_encoder import EncodedText
from limner.models.text_to_image import TextToImage, build_model
from limner.training.budget import Budget
from limner.training.optimizer import build_optimizers
from limner.training.runlog import read_log
from limner.training.trainer import Trainer

Build = Callable[..., Config]

CONTRACT = """
`data.dataset_name`, `data.dataset_path`, `data.image_size`, `data.num_samples`, `data.train_split`;
`model.hidden_size`, `num_layers`, `num_heads`, `patch_size`, `in_channels`, `out_channels`,
`mlp_ratio`, `dropout`;
`vae.pretrained_model_name`, `vae.use_slicing`; `text_encoder.pretrained_model_name`;
`training.output_dir`, `seed`, `batch_size`, `gradient_accumulation_steps`, `learning_rate`,
`num_epochs`, `save_steps`, `logging_steps`, `mixed_precision`, `max_grad_norm`, `use_ema`,
`ema_decay`, `num_workers`, `prefetch_factor`, `compile_model`;
`scheduler.num_train_timesteps`, `beta_start`, `beta_end`, `beta_schedule`, `prediction_type`;
`optimizer.type`, `weight_decay`, `betas`; `lr_scheduler.type`, `warmup_steps`.
"""

TUTORIAL = """
data:
  dataset_name: null
  dataset_path: ./data
  image_size: 64
  num_samples: 10000
  train_split: 0.9
model:
  hidden_size: 384
  num_layers: 8
  num_heads: 6
  patch_size: 4
  in_channels: 3
  out_channels: 3
  mlp_ratio: 4.0
  dropout: 0.1
vae:
  pretrained_model_name: null
  use_slicing: true
text_encoder:
  pretrained_model_name: null
training:
  output_dir: ./outputs
  seed: 42
  batch_size: 4
  gradient_accumulation_steps: 4
  learning_rate: 1e-4
  num_epochs: 100
  save_steps: 1000
  logging_steps: 100
  mixed_precision: no
  max_grad_norm: 1.0
  use_ema: true
  ema_decay: 0.9999
  num_workers: 2
  prefetch_factor: 2
  compile_model: false
scheduler:
  num_train_timesteps: 1000
  beta_start: 0.0001
  beta_end: 0.02
  beta_schedule: linear
  prediction_type: epsilon
optimizer:
  type: AdamW
  weight_decay: 0.01
  betas: [0.9, 0.999]
lr_scheduler:
  type: cosine
  warmup_steps: 500
"""

SHOWN: dict[str, list[str]] = {}
"""Key -> the tests below that show its effect."""


def shows(*keys: str) -> Callable[[Any], Any]:
    def mark(test: Any) -> Any:
        for key in keys:
            SHOWN.setdefault(key, []).append(test.__name__)
        return test

    return mark


def contract_keys() -> list[str]:
    """`section.key` of each name in the contract; a name alone is in the section before it."""
    keys, section = [], ""
    for name in re.findall(r"`([\w.]+)`", CONTRACT):
        section = name.partition(".")[0] if "." in name else section
        keys.append(name if "." in name else f"{section}.{name}")
    return keys


def test_no_key_of_the_contract_is_without_a_test() -> None:
    keys = contract_keys()
    assert len(keys) == len(set(keys)) == 41
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
    monkeypatch.setattr(devices, "matmul_peak", lambda device, dtype: 1e12)
    path = tmp_path / "train_config.yaml"
    path.write_text(TUTORIAL, encoding="utf-8")
    smaller = [
        f"data.dataset_path='{folder}'", "data.image_size=8", "model.hidden_size=64",
        "model.num_layers=1", "model.num_heads=2", "training.num_epochs=1",
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


def train(config: Config) -> Trainer:
    trainer = Trainer(config)
    trainer.train()
    return trainer


def logged(trainer: Trainer, kind: str = "train") -> list[dict[str, Any]]:
    return [event for event in read_log(trainer.folder / "log.jsonl") if event["kind"] == kind]


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
    batch = next(trainer.batches())
    assert batch.picture.shape == batch.noise.shape == (4, 3, size, size)


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
    text = EncodedText(torch.randn(2, 5, 96 // 64 * 64), torch.ones(2, 5, dtype=torch.bool))
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
@pytest.mark.parametrize("section", ["vae", "text_encoder"])
def test_pretrained_parts_load_and_training_says_that_they_are_not_there(
    section: str, tiny_config: Build
) -> None:
    config = tiny_config(f"{section}.pretrained_model_name=some/model")
    assert getattr(config, section).pretrained_model_name == "some/model"
    with pytest.raises(
        LimnerError, match=rf"{section}\.pretrained_model_name: .*cannot be used yet"
    ):
        Trainer(config)


@shows("vae.use_slicing")
def test_slicing_is_accepted_where_there_is_nothing_to_slice(tiny_config: Build) -> None:
    plain, sliced = (
        Trainer(tiny_config(f"vae.use_slicing={value}")) for value in ("false", "true")
    )
    batch = next(plain.batches())
    assert torch.equal(plain.loss(batch), sliced.loss(batch))


# training


@shows("training.output_dir", "training.save_steps", "training.logging_steps")
def test_files_and_lines_appear_where_and_when_they_should(
    tiny_config: Build, tmp_path: Path
) -> None:
    where = f"training.output_dir='{tmp_path / 'there' / 'run'}'"
    trainer = train(
        tiny_config(
            where, "training.max_steps=7", "training.save_steps=4", "training.logging_steps=2"
        )
    )
    assert [path.name for path in checkpoints(tmp_path / "there" / "run")] == [
        "checkpoint-4",
        "checkpoint-7",
    ]
    assert [line["step"] for line in logged(trainer)] == [2, 4, 6, 7]
    assert load_config(tmp_path / "there" / "run" / "config.yaml") == trainer.config


@shows("training.seed")
def test_the_seed_decides_the_weights_and_what_is_seen(tiny_config: Build) -> None:
    first, again, other = (Trainer(tiny_config(f"training.seed={seed}")) for seed in (3, 3, 4))
    for trainer, same in ((again, True), (other, False)):
        weights = (t.bare_model.denoiser.patch_embedding.weight for t in (first, trainer))
        batch, expected = next(trainer.batches()), next(first.batches())
        assert torch.equal(*weights) is same
        for name in ("picture", "noise", "u"):
            assert torch.equal(getattr(batch, name), getattr(expected, name)) is same


@shows("training.batch_size", "training.gradient_accumulation_steps")
def test_an_update_is_of_batch_size_times_accumulation_pictures(tiny_config: Build) -> None:
    sizes = ["training.batch_size=3", "training.gradient_accumulation_steps=4"]
    trainer = Trainer(tiny_config(*sizes, "training.max_steps=2"))
    seen = []
    loss = trainer.loss
    trainer.loss = lambda batch: seen.append(len(batch.picture)) or loss(batch)  # type: ignore
    state = trainer.train()
    assert seen == [3] * 8
    assert state.images == 24


@shows("training.learning_rate", "lr_scheduler.warmup_steps", "lr_scheduler.type")
@pytest.mark.parametrize(
    ("kind", "shares"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("wsd", [0.5, 1, 1, 1, 1, 0.5]),  # the last 30 % of six updates are two
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1] + [0.5 + 0.5 * math.cos(math.pi * x) for x in (0.25, 0.5, 0.75)]),
    ],
)
def test_the_learning_rate_warms_up_and_falls_as_asked(
    kind: str, shares: list[float], tiny_config: Build
) -> None:
    settings = [f"lr_scheduler.type={kind}", "lr_scheduler.warmup_steps=2"]
    trainer = train(tiny_config(*settings, "training.learning_rate=2e-3"))
    rates = [line["learning_rate"] for line in logged(trainer)]
    assert rates == pytest.approx([2e-3 * share for share in shares])
    for optimizer in trainer.optimizers.values():
        assert {group["lr"] for group in optimizer.param_groups} == {rates[-1]}


@shows("training.num_epochs")
@pytest.mark.parametrize(("epochs", "steps"), [("0.5", 3), ("1", 6), ("2", 12)])
def test_num_epochs_are_passes_over_the_training_pictures(
    epochs: str, steps: int, tiny_config: Build
) -> None:
    config = tiny_config("training.max_steps=null", f"training.num_epochs={epochs}")
    trainer = Trainer(config)
    rows = len(trainer.data.trained.rows)
    budget = Budget(config, trainer.state, trainer.accelerator, rows)
    assert rows == 23
    assert trainer.state.total_steps == math.ceil(float(epochs) * rows / 4) == steps
    assert not budget.finished()


@shows("training.mixed_precision")
@pytest.mark.parametrize(
    ("wanted", "dtype"),
    [("no", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16), ("auto", None)],
)
def test_the_network_computes_in_the_precision_asked_for(
    wanted: str, dtype: torch.dtype | None, tiny_config: Build
) -> None:
    trainer = Trainer(tiny_config(f"training.mixed_precision={wanted}"))
    fast = devices.fast_bfloat16(torch.device("cpu"))
    expected = dtype or (torch.bfloat16 if fast else torch.float32)
    seen = []
    layer = trainer.bare_model.denoiser.blocks[0].out
    layer.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    loss = trainer.loss(next(trainer.batches()))
    assert (seen, loss.dtype) == ([expected], torch.float32)
    assert {p.dtype for p in trainer.bare_model.parameters()} == {torch.float32}


@shows("training.max_grad_norm")
def test_a_gradient_longer_than_max_grad_norm_is_cut_to_it(tiny_config: Build) -> None:
    lengths = {}
    for limit in (1e-3, 1e9):
        trainer = Trainer(tiny_config(f"training.max_grad_norm={limit}", "optimizer.type=adamw"))
        used: list[float] = []

        def measure(optimizer: torch.optim.Optimizer, *_: Any, used: list[float] = used) -> None:
            gradients = [p.grad for g in optimizer.param_groups for p in g["params"]]
            used.append(
                float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients])))
            )

        trainer.optimizers["adamw"].register_step_pre_hook(measure)
        _, norm, _ = trainer.step(trainer.batches())
        lengths[limit] = (used[0], float(norm))
    assert lengths[1e-3][0] == pytest.approx(1e-3, rel=1e-3)
    assert lengths[1e9][0] == pytest.approx(lengths[1e9][1], rel=1e-5)
    assert lengths[1e-3][1] == pytest.approx(lengths[1e9][1], rel=1e-5)  # logged before the cut
    assert lengths[1e9][1] > 0.01


@shows("training.use_ema", "training.ema_decay")
def test_the_average_follows_the_weights_at_its_decay(tiny_config: Build) -> None:
    def average(*settings: str) -> tuple[Trainer, list[torch.Tensor]]:
        trainer = Trainer(tiny_config("training.max_steps=1", "training.ema_ramp=1000", *settings))
        before = [p.detach().clone() for p in trainer.bare_model.parameters()]
        trainer.train()
        return trainer, before

    for decay in (0.0, 0.5, 0.9):
        trainer, before = average(f"training.ema_decay={decay}")
        weights, averaged = trainer.bare_model.parameters(), trainer.averaged.parameters()
        for old, new, mean in zip(before, weights, averaged, strict=True):
            torch.testing.assert_close(mean, decay * old + (1 - decay) * new.detach())
        assert (trainer.folder / "checkpoint-1" / "ema.safetensors").is_file()
        for checkpoint in checkpoints(trainer.folder):
            for file in checkpoint.iterdir():
                file.unlink()
            checkpoint.rmdir()
    off, _ = average("training.use_ema=false", "training.ema_decay=0.9")
    for new, mean in zip(off.bare_model.parameters(), off.averaged.parameters(), strict=True):
        torch.testing.assert_close(mean, new.detach())
    assert not (off.folder / "checkpoint-1" / "ema.safetensors").exists()


@shows("training.num_workers", "training.prefetch_factor")
def test_workers_and_what_they_keep_ready_reach_the_loader(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = limner.training.trainer.DataLoader

    def loader(*args: Any, **settings: Any) -> Any:
        asked.append((settings["num_workers"], settings["prefetch_factor"]))
        return real(*args, **settings)

    monkeypatch.setattr(limner.training.trainer, "DataLoader", loader)
    batches = []
    for workers in (0, 1):
        settings = [f"training.num_workers={workers}", "training.prefetch_factor=3"]
        batches.append(next(Trainer(tiny_config(*settings)).batches()))
    assert asked == [(0, None), (1, 3)]
    assert torch.equal(batches[0].picture, batches[1].picture)


@shows("training.compile_model")
def test_compile_model_compiles_each_block_or_none(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    monkeypatch.setattr(devices, "why_not_compile", lambda device: None)
    train(tiny_config("training.max_steps=1", "training.compile_model=false"))
    assert compiled == []
    there = "training.output_dir='{}'".format(Path(tiny_config().training.output_dir) / "other")
    trainer = train(tiny_config("training.max_steps=1", "training.compile_model=true", there))
    model = trainer.bare_model
    assert compiled == [*model.denoiser.blocks, *model.text_encoder.blocks]


def test_a_machine_without_a_compiler_trains_and_says_so(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "why_not_compile", lambda device: "no C++ compiler was found")
    trainer = train(tiny_config("training.max_steps=1", "training.compile_model=true"))
    said = [event["message"] for event in logged(trainer, "event")]
    assert any("torch.compile is off" in m and "no C++ compiler was found" in m for m in said)


def test_the_best_device_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, best in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert devices.choose_device(load_config().training.device).type == best


# scheduler


@shows("scheduler.num_train_timesteps", "scheduler.beta_start", "scheduler.beta_end")
@shows("scheduler.beta_schedule")
@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
def test_the_betas_are_those_that_were_asked_for(kind: str) -> None:
    betas = {"beta_start": 0.001, "beta_end": 0.03, "beta_schedule": kind}
    config = load_config({"scheduler": {"num_train_timesteps": 100, **betas}})
    path = build_objective(config).path
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
    middle = build_objective(config).path.alpha(torch.tensor([499.0])) ** 2
    # Nichol & Dhariwal 2021, equation 17, half way.
    wave = [math.cos((x + 0.008) / 1.008 * math.pi / 2) ** 2 for x in (0, 0.5)]
    assert float(middle) == pytest.approx(wave[1] / wave[0], rel=1e-6)


@shows("scheduler.prediction_type")
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "velocity"])
def test_the_network_learns_what_prediction_type_names(prediction: str) -> None:
    objective = build_objective(load_config({"scheduler": {"prediction_type": prediction}}))
    x0, noise = torch.randn(2, 2, 3, 4, 4).unbind()
    t = torch.tensor([100.0, 700.0])
    alpha, sigma = (f(t)[:, None, None, None] for f in (objective.path.alpha, objective.path.sigma))
    expected = {
        "epsilon": noise,
        "v_prediction": alpha * noise - sigma * x0,
        "sample": x0,
        "velocity": noise - x0,
    }[prediction]
    torch.testing.assert_close(objective.target(x0, noise, t), expected)
    assert objective.loss(expected, x0, noise, t).max() < 1e-9


# optimizer


@shows("optimizer.type", "optimizer.betas", "optimizer.weight_decay")
@pytest.mark.parametrize(("kind", "names"), [("AdamW", {"adamw"}), ("muon", {"adamw", "muon"})])
def test_the_optimizer_is_the_one_that_was_asked_for(
    kind: str, names: set[str], tiny_config: Build
) -> None:
    settings = ["optimizer.weight_decay=0.5", "optimizer.betas=[0.8, 0.95]"]
    config = tiny_config(f"optimizer.type={kind}", *settings, "training.learning_rate=0.1")
    model = model_of(config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers = build_optimizers(model, config)
    assert set(optimizers) == names
    assert {group["betas"] for group in optimizers["adamw"].param_groups} == {(0.8, 0.95)}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers.values():
        optimizer.step()
    for name, parameter in model.named_parameters():
        # Without a gradient only the decay is left: learning rate times weight decay.
        shrunk = 1 - 0.1 * 0.5 if parameter.ndim >= 2 else 1.0
        torch.testing.assert_close(parameter.detach(), shrunk * before[name], msg=name)
