"""Noise levels weighed against one another: by their average loss, whatever the batches."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from limner.config import Config, load_config
from limner.training.batches import load_batches
from limner.training.loss_weighting import BINS, KEPT, LevelBalance
from limner.training.trainer import Trainer

CPU = torch.device("cpu")


def after(power: float, *updates: tuple[list[float], list[float]]) -> LevelBalance:
    balance = LevelBalance(power, CPU)
    for levels, losses in updates:
        balance.see(torch.tensor(levels), torch.tensor(losses))
        balance.learn()
    return balance


def test_a_level_counts_by_the_power_of_its_average_loss() -> None:
    # Three levels, whose averages are 4, 1, and 1: their mean is 2 as each was seen twice.
    seen = [0.01, 0.01, 0.5, 0.5, 0.99, 0.99], [3.0, 5.0, 1.0, 1.0, 0.5, 1.5]
    for power in (0.0, 0.5, 1.0):
        found = after(power, seen).weights(torch.tensor([0.02, 0.51, 0.98, 0.25]))
        expected = [0.5**power, 2**power, 2**power, 1.0]  # the last was never seen
        assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert LevelBalance(1.0, CPU).weights(torch.rand(5)).tolist() == [1.0] * 5


def test_averages_forget_what_is_long_past() -> None:
    balance = after(1.0, *[([0.5], [8.0])] * 20, *[([0.5], [2.0])] * 60, ([0.1], [2.0]))
    old = KEPT ** np.arange(80)[::-1]
    average = float((old * np.r_[[8.0] * 20, [2.0] * 60]).sum() / old.sum())
    assert average == pytest.approx(2.0, abs=0.4)
    count = float(old.sum())
    mean = (average * count + 2.0) / (count + 1)
    assert float(balance.weights(torch.tensor([0.5]))) == pytest.approx(mean / average, rel=1e-5)


def test_neither_parts_nor_order_of_an_update_matter() -> None:
    levels, losses = (
        torch.rand(40, generator=torch.Generator().manual_seed(0)),
        torch.rand(40) + 0.1,
    )
    whole, parts = LevelBalance(0.5, CPU), LevelBalance(0.5, CPU)
    whole.see(levels, losses)
    for part in torch.randperm(40).split(7):
        parts.see(levels[part], losses[part])
    for balance in (whole, parts):
        balance.learn()
    everywhere = (torch.arange(BINS) + 0.5) / BINS
    torch.testing.assert_close(whole.weights(everywhere), parts.weights(everywhere))
    assert len(set(whole.weights(everywhere).tolist())) > 5


def test_an_update_left_out_teaches_nothing_and_a_checkpoint_keeps_all() -> None:
    balance = after(0.5, ([0.2, 0.7], [1.0, 3.0]))
    before = {name: tensor.clone() for name, tensor in balance.state_dict().items()}
    balance.see(torch.tensor([0.2]), torch.tensor([float("nan")]))
    balance.forget()
    balance.learn()
    assert all(torch.equal(tensor, before[name]) for name, tensor in balance.state_dict().items())
    again = LevelBalance(0.5, CPU)
    again.load_state_dict(balance.state_dict())
    x = torch.linspace(0, 1, 50)
    assert torch.equal(again.weights(x), balance.weights(x))
    again.reset()
    assert again.weights(x).tolist() == [1.0] * 50


def test_gradients_are_those_of_the_weighed_losses(tiny_config: Callable[..., Config]) -> None:
    trainer = Trainer(tiny_config("scheduler.level_balance=1"))
    update = trainer.run.train_step
    loader = load_batches(trainer.run)
    for _ in range(15):
        update([next(loader)])
    batch = next(loader)
    timesteps = update.timesteps(batch)
    losses = update.loss(batch, timesteps)
    # Each level's loss over its average: by hand from what the balance remembers.
    balance = update.balance
    averages = (balance.sums / balance.counts).tolist()
    mean = float(balance.sums.sum() / balance.counts.sum())
    bins = (
        (timesteps / update.objective.noise_schedule.num_train_timesteps * BINS)
        .long()
        .clamp(max=BINS - 1)
        .tolist()
    )
    weights = torch.tensor([1.0 if np.isnan(averages[b]) else mean / averages[b] for b in bins])
    assert float(weights.std()) > 0.05
    parameters = list(trainer.model.parameters())
    expected = torch.autograd.grad((losses * weights).mean(), parameters, allow_unused=True)
    said = update.gradients([batch], 0.0)
    assert float(said) == pytest.approx(float(losses.detach().mean()), rel=1e-5)  # told as it is
    for parameter, gradient in zip(parameters, expected, strict=True):
        if gradient is not None:
            assert isinstance(parameter.grad, Tensor)
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_noise_schedules_are_trained_as_published() -> None:
    assert load_config(None).scheduler.level_balance == 0.5
    assert load_config(None, ["scheduler.prediction_type=epsilon"]).scheduler.level_balance == 0
    asked = ["scheduler.prediction_type=epsilon", "scheduler.level_balance=0.3"]
    assert load_config(None, asked).scheduler.level_balance == 0.3
