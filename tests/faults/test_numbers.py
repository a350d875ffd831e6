"""Losses and gradients that are no numbers: left out, rolled back once, and explained."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compared_runs import differing, elsewhere, run
from runs import events, messages

from limner.checkpoint.folder import load_tensors
from limner.checkpoint.locate import checkpoints
from limner.config import Config
from limner.errors import LimnerError
from limner.training import recovery
from limner.training.batches import load_batches
from limner.training.monitor.learning_curve import Spikes
from limner.training.monitor.nonfinite import diagnose
from limner.training.train_step import TrainStep
from limner.training.trainer import Trainer

Build = Callable[..., Config]


def spoil(trainer: Trainer, steps: Callable[[int], bool], how: str = "loss") -> Trainer:
    """The loss or its gradient is no number at these steps (counted from 0)."""
    loss = trainer.run.train_step.loss

    def spoilt(batch: Any, timesteps: torch.Tensor) -> torch.Tensor:
        losses = loss(batch, timesteps)
        if steps(trainer.state.step):
            if how == "gradient":
                losses.register_hook(lambda gradient: gradient * math.inf)
            elif how == "loss alone":
                return losses + math.inf
            else:
                return losses * float(how)
        return losses

    trainer.run.train_step.loss = spoilt  # type: ignore[method-assign]
    return trainer


@pytest.mark.usefixtures("float16_here")
@pytest.mark.parametrize("how", ["nan", "inf", "gradient", "loss alone"])
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_an_update_that_is_no_number_is_left_out_and_counted(
    precision: str, how: str, tiny_config: Build
) -> None:
    config = tiny_config(f"training.mixed_precision={precision}", "scheduler.logit_mean=0")
    trainer = spoil(Trainer(config), lambda step: step == 3, how)
    before: list[dict[str, torch.Tensor]] = []
    step = trainer.step

    def watched() -> Any:
        both = {"now": trainer.model, "averaged": trainer.averaged}
        before.append(
            {
                f"{which}.{n}": t.clone()
                for which, m in both.items()
                for n, t in m.state_dict().items()
            }
        )
        return step()

    trainer.step = watched  # type: ignore[method-assign]
    trainer.train()
    by_scaler = precision == "fp16" and how == "gradient"  # which it takes for its own work
    same = [name for name in before[3] if name.startswith("now.") or not by_scaler]
    assert all(torch.equal(before[3][name], before[4][name]) for name in same)
    assert not all(torch.equal(before[4][name], before[5][name]) for name in before[4])
    logged = events(trainer.folder, "train")
    if by_scaler:
        assert trainer.state.skipped == 0
        return
    assert trainer.state.skipped == 1
    assert [e["step"] for e in logged if e["loss"] is None] == [4]
    assert [e.get("skipped") for e in logged] == [None, None, None, 1, None, None]
    assert any(
        m.startswith("skipped the update at step 4: loss ") for m in messages(trainer.folder)
    )


def test_the_left_out_are_not_in_the_mean(tiny_config: Build) -> None:
    whole = run(elsewhere(tiny_config(), "whole"))
    first = [e["loss"] for e in events(whole, "train")][:2]
    trainer = spoil(Trainer(tiny_config("training.logging_steps=3")), lambda step: step == 2, "nan")
    trainer.train()
    (line, _) = events(trainer.folder, "train")
    assert line["loss"] == pytest.approx(sum(first) / 2)
    assert line["skipped"] == 1


def test_a_run_with_an_update_left_out_resumes_exactly(tiny_config: Build) -> None:
    config = tiny_config()
    whole = spoil(Trainer(elsewhere(config, "whole")), lambda step: step in (2, 4), "nan")
    whole.train()
    first = spoil(Trainer(config), lambda step: step == 2, "nan")
    first.train()
    (first.folder / "checkpoint-6" / "manifest.json").unlink()
    again = spoil(Trainer(config), lambda step: step == 4, "nan")
    assert (again.state.step, again.state.skipped) == (4, 1)  # the save waited for a good one
    again.train()
    assert differing(whole.folder / "checkpoint-6", again.folder / "checkpoint-6") == []


@pytest.mark.parametrize("first", [4, 0])
def test_many_in_a_row_roll_back_once_and_the_run_goes_on(first: int, tiny_config: Build) -> None:
    config = tiny_config("training.max_steps=18")
    # Good again after ten, as where a stretch of pictures was the cause.
    trainer = spoil(Trainer(config), lambda step: first <= step < first + 10, "nan")
    trainer.train()
    (said,) = [m for m in messages(trainer.folder) if "10 updates in a row" in m]
    assert ("weights of checkpoint-3," if first else "weights of its beginning,") in said
    assert trainer.state.rolled_back_at == first + 10
    assert trainer.state.skipped == 10
    assert trainer.state.images == 4 * 18  # what led there is not taken again
    assert checkpoints(trainer.folder)[-1].name == "checkpoint-18"
    weights = load_tensors(trainer.folder / "checkpoint-18" / "model.pt")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_after_peace_the_run_may_go_back_once_more(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "PEACE", 12)
    trainer = Trainer(tiny_config("training.max_steps=40"))
    spoil(trainer, lambda step: 2 <= step < 12 or 26 <= step < 36, "nan").train()
    assert len([m for m in messages(trainer.folder) if "10 updates in a row" in m]) == 2
    assert (trainer.state.rolled_back_at, trainer.state.skipped) == (36, 20)


def test_the_weights_go_back_to_those_of_the_checkpoint(tiny_config: Build) -> None:
    trainer = spoil(Trainer(tiny_config("training.max_steps=14")), lambda s: 4 <= s < 14, "nan")
    trainer.train()
    ended, good = (load_tensors(trainer.folder / f"checkpoint-{n}" / "model.pt") for n in (14, 3))
    assert all(torch.equal(ended[name], good[name]) for name in good)


def test_a_second_time_the_run_ends_with_a_diagnosis(tiny_config: Build) -> None:
    trainer = Trainer(tiny_config("training.max_steps=100"))
    layer = trainer.model.denoiser.blocks[1].mlp
    layer.register_forward_hook(
        lambda module, inputs, output: output * (math.nan if trainer.state.step >= 4 else 1)
    )
    with pytest.raises(LimnerError) as error:
        trainer.train()
    said = str(error.value)
    assert "again after rolling back to a checkpoint at step 14" in said
    assert "the first non-finite value is in the output of denoiser.blocks.1.mlp" in said
    assert "a lower training.learning_rate" in said
    assert trainer.state.step == 24
    good = load_tensors(trainer.folder / "checkpoint-3" / "model.pt")
    assert all(tensor.isfinite().all() for tensor in good.values())


# The diagnosis


@pytest.fixture
def parts(tiny_config: Build) -> tuple[TrainStep, Any]:
    trainer = Trainer(tiny_config())
    batches = load_batches(trainer.run)
    batch = next(batches)
    for _ in range(2):  # a fresh model's last layer is zero, and stops every gradient
        trainer.batches.restart()
        trainer.run.set_learning_rate()
        trainer.step()
    return trainer.run.train_step, batch


def losses_of(update: TrainStep) -> Callable[[Any], torch.Tensor]:
    return lambda batch: update.loss(batch, update.timesteps(batch))


def said_of(update: TrainStep, batch: Any) -> str:
    return diagnose(update.model, losses_of(update), batch, torch.float32)


def test_it_names_a_weight(parts: tuple[TrainStep, Any]) -> None:
    update, batch = parts
    with torch.no_grad():
        update.model.denoiser.blocks[0].out.weight[3, 5] = math.inf  # type: ignore[union-attr, index]
    said = said_of(update, batch)
    assert "the weight denoiser.blocks.0.out.weight [64, 64] itself is 1 infinite of 4,096" in said
    assert "older checkpoint" in said


def test_it_names_the_layer_whose_output_goes_wrong_first(parts: tuple[TrainStep, Any]) -> None:
    update, batch = parts
    with torch.no_grad():
        update.model.denoiser.blocks[1].mlp.out.weight.fill_(3e38)  # type: ignore[union-attr, index]
    said = said_of(update, batch)
    assert (
        "the first non-finite value is in the output of denoiser.blocks.1.mlp.out (Linear" in said
    )
    assert "from inputs up to" in said


def test_it_names_the_gradient_that_goes_wrong_first(parts: tuple[TrainStep, Any]) -> None:
    update, batch = parts
    layer = update.model.denoiser.blocks[0].mlp.out  # type: ignore[union-attr, index]
    layer.register_forward_hook(
        lambda module, inputs, output: output.register_hook(lambda g: g * math.nan) and None
    )
    said = said_of(update, batch)
    assert "in the backward pass" in said
    assert "denoiser.blocks.0" in said
    assert all(p.grad is None for p in update.model.parameters())


def test_it_names_the_data(parts: tuple[TrainStep, Any]) -> None:
    update, batch = parts
    batch.image[1, 0, 3, 3] = math.nan
    assert "the batch's image [4, 3, 16, 16] is 1 NaN of 3,072" in said_of(update, batch)


def test_it_says_when_the_fault_does_not_repeat(parts: tuple[TrainStep, Any]) -> None:
    assert "the fault is not reproducible" in said_of(*parts)


def test_float16_is_told_of_its_range(parts: tuple[TrainStep, Any]) -> None:
    update, batch = parts
    assert "bf16 or no (the maximum of float16 is 65,504)" in diagnose(
        update.model, losses_of(update), batch, torch.float16
    )


# Spikes


def test_a_jump_of_the_loss_is_told_once() -> None:
    spikes = Spikes()
    noise = torch.Generator().manual_seed(0)
    quiet = [1 + 0.05 * float(torch.randn((), generator=noise)) for _ in range(300)]
    assert [spikes.see(loss, n) for n, loss in enumerate(quiet)] == [None] * 300
    said = spikes.see(2.5, 300)
    assert said is not None
    assert "jumped to 2.5 at step 300, from about 1" in said
    assert spikes.see(2.6, 301) is None  # still up
    assert spikes.see(1.0, 302) is None
    assert spikes.see(3.0, 303) is None  # again: counted, and not said any more
    assert (spikes.jumped, spikes.count) == (True, 2)
    assert spikes.see(math.nan, 304) is None
    resumed = Spikes([*quiet, 2.5, 2.6, 1.0, 3.0])
    assert (resumed.count, resumed.up) == (2, True)
    assert list(resumed.recent) == list(spikes.recent)


def test_a_falling_loss_and_a_short_history_are_no_spikes() -> None:
    spikes = Spikes()
    assert all(spikes.see(1 / (1 + n), n) is None for n in range(100))
    few = Spikes([1.0] * 5)
    assert few.see(100.0, 6) is None


@pytest.mark.parametrize("rises", [1.0, 1.6])
def test_a_short_fine_tuning_is_noise_and_no_spike(rises: float) -> None:
    """Its loss begins low and stays, or rises as training goes on to cleaner pictures."""
    noise = torch.Generator().manual_seed(0)
    said = jumped = 0
    for _ in range(100):
        scatter = (0.3 * torch.randn(60, generator=noise)).exp()
        losses = (0.4 * torch.linspace(1, rises, 60) * scatter).tolist()
        spikes = Spikes()
        for number, loss in enumerate(losses):
            spikes.see(loss, number)
        said += spikes.count > 0
        after = Spikes(losses[:12])
        jumped += after.see(50 * max(losses[:12]), 13) is not None
    assert said <= 2
    assert jumped >= 95


def test_a_fine_tuning_of_twenty_steps_that_was_measured_has_no_spike() -> None:
    losses = [
        *(0.144, 0.071, 0.090, 0.167, 0.099, 0.110, 0.228, 0.157, 0.101, 0.108),
        *(0.138, 0.190, 0.111, 0.206, 0.172, 0.300, 0.232, 0.230, 0.239, 0.633),
    ]
    spikes = Spikes()
    assert [spikes.see(loss, n) for n, loss in enumerate(losses)] == [None] * 20
    assert spikes.count == 0
    assert spikes.see(10.0, 21) is not None


def test_losses_of_zero_have_a_rule_too() -> None:
    spikes = Spikes([0.0] * 20)
    assert spikes.see(0.0, 21) is None
    assert spikes.see(1.0, 22) is not None


def test_a_run_warns_of_the_first_jump_and_counts_the_others(tiny_config: Build) -> None:
    config = tiny_config("training.max_steps=16")
    trainer = spoil(Trainer(config), lambda step: step in (11, 13, 14), "50")
    trainer.train()
    first, last = [m for m in messages(trainer.folder) if "the loss jumped" in m]
    assert "at step 12" in first
    assert "2 times in total" in last
    jumps = [e["step"] for e in events(trainer.folder, "train") if e.get("jumped")]
    assert jumps == [12, 14]
