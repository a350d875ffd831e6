"""What the keys of the sections training, lr_scheduler, and optimizer do (see contract.py)."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import shows
from torch import nn

from limner import device as devices
from limner.checkpoint.locate import checkpoints
from limner.config import Config, load_config
from limner.diffusion.noise_schedule import FlowMatchingSchedule
from limner.models.text_to_image import TextToImage, build_model
from limner.training import batches as batches_module
from limner.training.batches import load_batches
from limner.training.budget import Budget
from limner.training.monitor.run_log import read_log
from limner.training.optimizer import build_optimizers
from limner.training.trainer import Trainer

Build = Callable[..., Config]


def train(config: Config) -> Trainer:
    trainer = Trainer(config)
    trainer.train()
    return trainer


def logged(trainer: Trainer, kind: str = "train") -> list[dict[str, Any]]:
    return [event for event in read_log(trainer.folder / "log.jsonl") if event["kind"] == kind]


@shows("training.output_dir", "training.save_steps", "training.logging_steps")
def test_files_and_lines_appear_where_and_when_they_should(
    tiny_config: Build, tmp_path: Path
) -> None:
    where = f"training.output_dir='{tmp_path / 'there' / 'run'}'"
    trainer = train(
        tiny_config(
            where,
            "training.max_steps=7",
            "training.save_steps=4",
            "training.logging_steps=2",
            "training.heldout_steps=100",  # which may save, too
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
        weights = (t.model.denoiser.patch_embedding.weight for t in (first, trainer))
        batch, expected = next(load_batches(trainer.run)), next(load_batches(first.run))
        assert torch.equal(*weights) is same
        for name in ("image", "noise", "u"):
            assert torch.equal(getattr(batch, name), getattr(expected, name)) is same


@shows("training.batch_size", "training.gradient_accumulation_steps")
def test_an_update_is_of_batch_size_times_accumulation_pictures(tiny_config: Build) -> None:
    sizes = ["training.batch_size=3", "training.gradient_accumulation_steps=4"]
    trainer = Trainer(tiny_config(*sizes, "training.max_steps=2"))
    seen = []
    loss = trainer.run.train_step.loss
    trainer.run.train_step.loss = lambda batch, t: seen.append(len(batch)) or loss(batch, t)  # type: ignore
    state = trainer.train()
    assert seen == [3] * 8
    assert state.images == 24


@shows("training.learning_rate", "lr_scheduler.warmup_steps", "lr_scheduler.type")
@pytest.mark.parametrize(
    ("kind", "shares"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("wsd", [0.5, 1, 1, 0.75, 0.5, 0.25]),  # the last 60 % of six updates are four
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
    peaks = {
        name: {group["lr"] for group in optimizer.param_groups}
        for name, optimizer in trainer.run.optimizers.items()
    }
    assert peaks == {"muon": {rates[-1]}, "adamw": {0.33 * rates[-1]}}


@pytest.mark.parametrize(
    ("kind", "moved"),
    [
        ("constant", [0, 0, 0, 0, 0, 0]),
        ("wsd", [0, 0, 0, 0.25, 0.5, 0.75]),
        ("linear", [0, 0, 0, 0.25, 0.5, 0.75]),
    ],
)
def test_the_training_times_move_as_the_learning_rate_falls(
    kind: str, moved: list[float], tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    plain = FlowMatchingSchedule.training_timesteps

    def recorded(path: FlowMatchingSchedule, u: torch.Tensor, moved: float = 0.0) -> torch.Tensor:
        seen.append(moved)
        return plain(path, u, moved)

    monkeypatch.setattr(FlowMatchingSchedule, "training_timesteps", recorded)
    train(tiny_config(f"lr_scheduler.type={kind}", "lr_scheduler.warmup_steps=2"))
    assert seen == pytest.approx(moved)


@pytest.mark.parametrize(("optimizer", "share"), [("muon", 0.25), ("adamw", 1)])
def test_adamw_has_its_share_of_the_rate_beside_muon_and_all_of_it_alone(
    optimizer: str, share: float, tiny_config: Build
) -> None:
    settings = [f"optimizer.type={optimizer}", "optimizer.adamw_rate_share=0.25"]
    trainer = train(tiny_config(*settings, "lr_scheduler.type=constant", "training.max_steps=2"))
    rate = logged(trainer)[-1]["learning_rate"]
    groups = trainer.run.optimizers["adamw"].param_groups
    assert {group["lr"] for group in groups} == {share * rate}


@shows("training.num_epochs")
@pytest.mark.parametrize(("epochs", "steps"), [("0.5", 3), ("1", 6), ("2", 12)])
def test_num_epochs_are_passes_over_the_training_pictures(
    epochs: str, steps: int, tiny_config: Build
) -> None:
    config = tiny_config("training.max_steps=null", f"training.num_epochs={epochs}")
    trainer = Trainer(config)
    rows = len(trainer.data.trained.rows)
    budget = Budget(config, trainer.state, trainer.run.accelerator, rows)
    assert rows == 23
    assert trainer.state.total_steps == math.ceil(float(epochs) * rows / 4) == steps
    assert not budget.finished()


@shows("training.mixed_precision")
@pytest.mark.parametrize(
    ("wanted", "dtype"),
    [("no", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16), ("auto", None)],
)
def test_the_network_computes_in_the_precision_asked_for(
    wanted: str, dtype: torch.dtype | None, tiny_config: Build, float16_here: None
) -> None:
    trainer = Trainer(tiny_config(f"training.mixed_precision={wanted}"))
    fast = devices.fast_bfloat16(torch.device("cpu"))
    expected = dtype or (torch.bfloat16 if fast else torch.float32)
    seen = []
    layer = trainer.model.denoiser.blocks[0].out
    layer.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    update, batch = trainer.run.train_step, next(load_batches(trainer.run))
    loss = update.loss(batch, update.timesteps(batch))
    assert (seen, loss.dtype) == ([expected], torch.float32)
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


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

        trainer.run.optimizers["adamw"].register_step_pre_hook(measure)
        trainer.batches.restart()
        norm = trainer.step()[0].norm
        lengths[limit] = (used[0], norm)
    assert lengths[1e-3][0] == pytest.approx(1e-3, rel=1e-3)
    assert lengths[1e9][0] == pytest.approx(lengths[1e9][1], rel=1e-5)
    assert lengths[1e-3][1] == pytest.approx(lengths[1e9][1], rel=1e-5)  # logged before the cut
    assert lengths[1e9][1] > 0.01


@shows("training.use_ema", "training.ema_decay")
def test_the_average_follows_the_weights_at_its_decay(tiny_config: Build) -> None:
    def average(*settings: str) -> tuple[Trainer, list[torch.Tensor]]:
        trainer = Trainer(tiny_config("training.max_steps=1", "training.ema_ramp=1000", *settings))
        before = [p.detach().clone() for p in trainer.model.parameters()]
        trainer.train()
        return trainer, before

    for decay in (0.0, 0.5, 0.9):
        trainer, before = average(f"training.ema_decay={decay}")
        weights, averaged = trainer.model.parameters(), trainer.averaged.parameters()
        for old, new, mean in zip(before, weights, averaged, strict=True):
            torch.testing.assert_close(mean, decay * old + (1 - decay) * new.detach())
        assert (trainer.folder / "checkpoint-1" / "ema.safetensors").is_file()
        for checkpoint in checkpoints(trainer.folder):
            for file in checkpoint.iterdir():
                file.unlink()
            checkpoint.rmdir()
    off, _ = average("training.use_ema=false", "training.ema_decay=0.9")
    for new, mean in zip(off.model.parameters(), off.averaged.parameters(), strict=True):
        torch.testing.assert_close(mean, new.detach())
    assert not (off.folder / "checkpoint-1" / "ema.safetensors").exists()


@shows("training.num_workers", "training.prefetch_factor")
def test_workers_and_what_they_keep_ready_reach_the_loader(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = batches_module.DataLoader

    def loader(*args: Any, **settings: Any) -> Any:
        asked.append((settings["num_workers"], settings["prefetch_factor"]))
        return real(*args, **settings)

    monkeypatch.setattr(batches_module, "DataLoader", loader)
    batches = []
    for workers in (0, 1):
        settings = [f"training.num_workers={workers}", "training.prefetch_factor=3"]
        batches.append(next(load_batches(Trainer(tiny_config(*settings)).run)))
    assert asked == [(0, None), (1, 3)]
    assert torch.equal(batches[0].image, batches[1].image)


@shows("training.compile_model")
def test_compile_model_compiles_each_block_and_the_last_layer_or_none(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    monkeypatch.setattr(devices, "why_not_compile", lambda device: None)
    train(tiny_config("training.max_steps=1", "training.compile_model=false"))
    assert compiled == []
    there = "training.output_dir='{}'".format(Path(tiny_config().training.output_dir) / "other")
    trainer = train(tiny_config("training.max_steps=1", "training.compile_model=true", there))
    model = trainer.model
    denoiser, text_encoder = model.denoiser, model.text_encoder
    assert compiled == [*denoiser.blocks, *text_encoder.blocks, denoiser.final_layer]


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


def model_of(config: Config) -> TextToImage:
    torch.manual_seed(0)
    return build_model(config, 300)


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
