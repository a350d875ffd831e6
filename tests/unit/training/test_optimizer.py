"""Muon against torch's, who owns which parameter, and what is computed from the step."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from limner.config import Config, LrSchedulerConfig
from limner.models.layers import StackedLinear
from limner.models.text_to_image import build_model
from limner.training import muon as muon_module
from limner.training.lr_schedule import ema_decay, learning_rate_share
from limner.training.muon import Muon, orthogonalise
from limner.training.optimizer import build_optimizers

SHAPES = [(16, 48), (48, 16), (32, 32)]


@pytest.fixture
def precise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newton-Schulz in float32 on any processor, so that rounding hides no difference."""
    monkeypatch.setattr(muon_module, "fast_bfloat16", lambda device: False)


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def parameters(*shapes: tuple[int, int]) -> list[nn.Parameter]:
    return [nn.Parameter(matrix(*shape, seed=i)) for i, shape in enumerate(shapes)]


def run(
    optimizer: torch.optim.Optimizer,
    gradients_of: Sequence[tuple[nn.Parameter, int]],
    steps: int = 3,
) -> None:
    """Updates with gradients that depend on the step and on the number beside each parameter."""
    for step in range(steps):
        for p, number in gradients_of:
            p.grad = matrix(*p.shape, seed=100 * step + number)
        optimizer.step()


# Muon


@pytest.mark.parametrize("shape", SHAPES)
def test_muon_is_that_of_torch(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    # Torch's works in bfloat16 everywhere.
    monkeypatch.setattr(muon_module, "fast_bfloat16", lambda device: True)
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2}
    (ours,), (theirs,) = parameters(shape), parameters(shape)
    run(Muon([ours], **settings), [(ours, 0)])
    run(torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **settings), [(theirs, 0)])
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("precise")
def test_matrices_of_one_shape_do_not_mix() -> None:
    shapes = [(16, 24), (16, 24), (24, 16), (16, 24)]
    together, alone = parameters(*shapes), parameters(*shapes)
    run(Muon(together, 0.1), [(p, i) for i, p in enumerate(together)])
    for i, p in enumerate(alone):
        run(Muon([p], 0.1), [(p, i)])
        torch.testing.assert_close(together[i], p)


@pytest.mark.usefixtures("precise")
def test_stacked_parts_are_separate_matrices() -> None:
    (stacked,) = parameters((3 * 16, 24))
    parts = [nn.Parameter(part.clone()) for part in stacked.detach().chunk(3)]
    whole, apart = Muon([{"params": [stacked], "parts": 3}], 0.1), Muon(parts, 0.1)
    for step in range(3):
        stacked.grad = matrix(48, 24, seed=step)
        for part, gradient in zip(parts, stacked.grad.chunk(3), strict=True):
            part.grad = gradient.clone()
        whole.step()
        apart.step()
    torch.testing.assert_close(stacked, torch.cat(parts))


@pytest.mark.usefixtures("precise")
def test_between_its_turns_a_matrix_keeps_its_direction() -> None:
    shapes = [(16, 24)] * 5
    lazy, eager = parameters(*shapes), parameters(*shapes)
    ours, full = Muon(lazy, 0.1, period=3), Muon(eager, 0.1)
    moves: dict[str, list[list[Tensor]]] = {"lazy": [], "eager": []}
    for step in range(9):
        for name, optimizer, matrices in (("lazy", ours, lazy), ("eager", full, eager)):
            before = [p.detach().clone() for p in matrices]
            run(optimizer, [(p, 10 * step + i) for i, p in enumerate(matrices)], steps=1)
            moves[name].append([b - p.detach() for b, p in zip(before, matrices, strict=True)])
    turns = [
        [i for i in range(5) if torch.allclose(lazily[i], eagerly[i], atol=1e-6)]
        for lazily, eagerly in zip(moves["lazy"], moves["eager"], strict=True)
    ]
    # All at first; then each at every third update, and some at each.
    assert turns == [[0, 1, 2, 3, 4], *[[0, 3], [1, 4], [2]] * 2, [0, 3], [1, 4]]
    for i in range(5):
        for now, (before, after) in enumerate(pairwise(moves["lazy"])):
            same = torch.allclose(before[i], after[i], atol=1e-6)
            assert same == (i not in turns[now + 1])


@pytest.mark.usefixtures("precise")
def test_a_lazy_muon_goes_on_as_it_would_have() -> None:
    straight, stopped = parameters(*SHAPES * 2), parameters(*SHAPES * 2)
    numbered = [list(enumerate(p)) for p in (straight, stopped)]
    one, other = Muon(straight, 0.1, period=4), Muon(stopped, 0.1, period=4)
    for step in range(11):
        if step == 6:
            saved = other.state_dict()
            other = Muon(stopped, 0.1, period=4)
            other.load_state_dict(saved)
        for optimizer, pairs in zip((one, other), numbered, strict=True):
            run(optimizer, [(p, 10 * step + i) for i, p in pairs], steps=1)
    for a, b in zip(straight, stopped, strict=True):
        assert torch.equal(a, b)
    for state in one.state.values():  # nothing but its own is kept, and saved
        direction = state["direction"]
        assert direction.untyped_storage().nbytes() == direction.nbytes


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalise_keeps_directions_and_evens_out_strengths(shape: tuple[int, int]) -> None:
    # Strengths from 1 to 30: the ten-thousandth part of the whole would need more iterations.
    u, _, v = torch.linalg.svd(matrix(*shape), full_matrices=False)
    strengths = torch.logspace(0, 1.5, len(v))
    result = orthogonalise((u * strengths @ v)[None])[0].float()
    inner = u.T @ result @ v.T
    assert 0.6 < inner.diagonal().min() <= inner.diagonal().max() < 1.25
    assert (inner - inner.diagonal().diag()).abs().max() < 0.05
    zero = orthogonalise(torch.zeros(1, *shape))
    assert not zero.any()


@pytest.mark.parametrize("shape", [(16, 48), (192, 16), (64, 64)])
def test_an_update_is_as_large_as_one_of_adamw(shape: tuple[int, int]) -> None:
    (p,) = parameters(shape)
    before = p.detach().clone()
    run(Muon([p], lr=0.01), [(p, 0)], steps=1)
    size = float((p.detach() - before).square().mean().sqrt())
    assert size == pytest.approx(0.2 * 0.01, rel=0.25)


# Who owns what


@pytest.mark.parametrize("architecture", ["modern", "dit"])
@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_every_parameter_has_one_owner(
    kind: str, architecture: str, tiny_config: Callable[..., Config]
) -> None:
    config = tiny_config(
        f"optimizer.type={kind}", f"model.architecture={architecture}", "optimizer.weight_decay=0.1"
    )
    model = build_model(config, text_size=300)
    optimizers = build_optimizers(model, config)
    owned = [p for o in optimizers.values() for g in o.param_groups for p in g["params"]]
    assert len(owned) == len({id(p) for p in owned}) == len(list(model.parameters()))
    if kind == "adamw":
        assert list(optimizers) == ["adamw"]
        return

    muon = {id(p) for group in optimizers["muon"].param_groups for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in muon}
    matrices = {
        name
        for name, p in model.named_parameters()
        if "blocks." in name and name.endswith("weight") and p.ndim == 2 and "adaLN" not in name
    }
    assert names == matrices
    parts = {id(p): g["parts"] for g in optimizers["muon"].param_groups for p in g["params"]}
    for module in model.modules():
        if isinstance(module, StackedLinear):
            assert parts[id(module.weight)] == module.parts > 1


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_gains_and_biases_do_not_decay(kind: str, tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(f"optimizer.type={kind}", "optimizer.weight_decay=0.1")
    for optimizer in build_optimizers(build_model(config, text_size=300), config).values():
        for group in optimizer.param_groups:
            for p in group["params"]:
                assert group["weight_decay"] == (0.1 if p.ndim >= 2 else 0.0)


# What is computed from the step


def shares(kind: str, steps: range, warmup_steps: int = 10, **totals: int | None) -> list[float]:
    settings = LrSchedulerConfig(type=kind, warmup_steps=warmup_steps)
    total_steps, decay_start = totals.get("total", 100), totals.get("decay_start", 70)
    return [learning_rate_share(settings, s, total_steps, decay_start) for s in steps]


@pytest.mark.parametrize("kind", ["wsd", "constant", "linear", "cosine"])
def test_the_learning_rate_warms_up_in_equal_steps(kind: str) -> None:
    assert shares(kind, range(11)) == pytest.approx([*(i / 10 for i in range(1, 11)), 1.0])
    assert shares(kind, range(1), warmup_steps=0) == [1.0]


def test_each_schedule_has_its_shape() -> None:
    assert set(shares("constant", range(10, 200))) == {1.0}
    wsd = shares("wsd", range(10, 101))
    assert set(wsd[:61]) == {1.0}
    assert wsd[60:] == pytest.approx([(100 - s) / 30 for s in range(70, 101)])
    assert shares("linear", range(10, 101, 45)) == pytest.approx([1.0, 0.5, 0.0])
    assert shares("cosine", range(10, 101, 30)) == pytest.approx(
        [(1 + math.cos(math.pi * x)) / 2 for x in (0, 1 / 3, 2 / 3, 1)]
    )
    assert min(wsd[:-1]) > 0  # the last update, number 99, still learns


def test_a_run_that_does_not_know_its_end_yet_stays_at_the_peak() -> None:
    for kind in ("wsd", "linear", "cosine"):
        assert set(shares(kind, range(10, 500), total=None, decay_start=None)) == {1.0}


def test_the_average_forgets_with_a_half_life_that_is_a_share_of_the_run() -> None:
    # At 10,000 pictures and a share of 0.05, what was there is halved within 500 pictures.
    assert ema_decay(10_000, 50, 0.9999, 0.05) ** 10 == pytest.approx(0.5)
    assert ema_decay(10_000, 50, 0.9999, 0.05) == pytest.approx(ema_decay(10_000, 25, 1, 0.05) ** 2)
    decays = [ema_decay(images, 32, 0.999, 0.05) for images in range(32, 10**6, 3200)]
    assert decays[0] < 1e-5  # the first update leaves nothing of the random start
    assert all(a <= b for a, b in pairwise(decays))
    assert decays[-1] == 0.999
