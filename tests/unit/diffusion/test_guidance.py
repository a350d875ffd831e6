"""Guidance: each refinement against its formula in numpy, and what the two predictions are."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from limner.config import SamplingConfig, load_config
from limner.diffusion.guidance import combination, guided_denoiser
from limner.diffusion.noise_schedule import FlowMatchingSchedule, NoiseSchedule, VPSchedule
from limner.diffusion.objective import Objective
from limner.diffusion.solvers import SOLVERS
from limner.errors import LimnerError
from limner.inference.sampling_settings import function_evaluations, inference_timesteps
from limner.text.conditioning import TextConditioning

REFINEMENTS = {
    "cfg": {},
    "cfg_zero_star": {"guidance_type": "cfg_zero_star"},
    "apg": {"guidance_type": "apg"},
    "apg, all of it": {
        "guidance_type": "apg",
        "apg_eta": 0.3,
        "apg_threshold": 0.4,
        "apg_momentum": -0.75,
    },
    "rescaled": {"guidance_rescale": 0.7},
}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """x_t and two predictions of x_0 that agree in part; each [3, 2, 5, 4]."""
    x, x0, change = randn(3, 3, 2, 5, 4, seed=seed)
    return x, x0, x0 + 0.5 * change


# The formulas


def in_numpy(*tensors: Tensor) -> list[list[np.ndarray]]:
    """Each picture of each batch, as float64."""
    return [list(t.double().numpy()) for t in tensors]


def test_plain_guidance_goes_on_from_one_prediction_through_the_other() -> None:
    x, x0, null = images(0)
    expected = null + 2.5 * (x0 - null)
    assert torch.equal(combination(SamplingConfig(guidance_scale=2.5))(x, x0, null), expected)


def test_cfg_zero_star_is_the_formula_of_the_paper_for_velocities() -> None:
    scale, sigma = 3.5, 0.37
    x, x0, null = images(1)
    sampling = SamplingConfig(guidance_scale=scale, guidance_type="cfg_zero_star")
    found = combination(sampling)(x, x0, null)
    for one, at, there, elsewhere in zip(*in_numpy(found, x, x0, null), strict=True):
        v, u = (at - there) / sigma, (at - elsewhere) / sigma
        s = np.vdot(v, u) / np.vdot(u, u)
        guided = (1 - scale) * s * u + scale * v
        np.testing.assert_allclose(one, at - sigma * guided, atol=1e-5)
    # s u is the nearest to v of all multiples of u.
    nearest = np.linalg.norm(v - s * u)
    assert all(np.linalg.norm(v - (s + off) * u) > nearest for off in (-0.01, 0.01))


def test_apg_is_the_algorithm_of_the_paper_step_by_step() -> None:
    scale, eta, threshold, momentum = 4.0, 0.25, 0.3, -0.6
    combine = combination(
        SamplingConfig(
            guidance_scale=scale,
            guidance_type="apg",
            apg_eta=eta,
            apg_threshold=threshold,
            apg_momentum=momentum,
        )
    )
    running = [np.zeros((2, 5, 4))] * 3
    limited = []
    for step in range(4):
        x, x0, null = images(10 + step)
        if step == 3:  # a small one, which the threshold leaves alone
            null = x0 + 0.1 * (null - x0)
            running = [0.0 * r for r in running]
            combine = combination(
                SamplingConfig(
                    guidance_scale=scale,
                    guidance_type="apg",
                    apg_eta=eta,
                    apg_threshold=threshold,
                    apg_momentum=momentum,
                )
            )
        found = combine(x, x0, null)
        for i, (one, there, elsewhere) in enumerate(zip(*in_numpy(found, x0, null), strict=True)):
            running[i] = there - elsewhere + momentum * running[i]
            norm, r = np.linalg.norm(running[i]), threshold * np.sqrt(there.size)
            limited.append(norm > r)
            difference = running[i] * min(1.0, r / norm)
            unit = there / np.linalg.norm(there)
            parallel = np.vdot(difference, unit) * unit
            update = (difference - parallel) + eta * parallel
            np.testing.assert_allclose(one, there + (scale - 1) * update, atol=1e-5)
    assert {True, False} == set(map(bool, limited))


def test_apg_that_keeps_everything_is_plain_guidance() -> None:
    x, x0, null = images(2)
    plain = combination(SamplingConfig(guidance_scale=3))(x, x0, null)
    settings = {"apg_eta": 1.0, "apg_momentum": 0.0}
    apg = combination(SamplingConfig(guidance_scale=3, guidance_type="apg", **settings))
    for _ in range(2):  # without momentum it remembers nothing
        torch.testing.assert_close(apg(x, x0, null), plain, atol=1e-5, rtol=0)


def test_rescaling_draws_the_contrast_back_and_keeps_the_mean() -> None:
    x, x0, null = images(3)
    plain = combination(SamplingConfig(guidance_scale=6))(x, x0, null)
    for share in (0.4, 1.0):
        sampling = SamplingConfig(guidance_scale=6, guidance_rescale=share)
        found = combination(sampling)(x, x0, null)
        for one, guided, there in zip(*in_numpy(found, plain, x0), strict=True):
            ratio = there.std() / guided.std()
            np.testing.assert_allclose(one.mean(), guided.mean(), atol=1e-5)
            np.testing.assert_allclose(
                one.std(), guided.std() * (share * ratio + 1 - share), atol=1e-5
            )
            np.testing.assert_allclose(np.corrcoef(one.ravel(), guided.ravel())[0, 1], 1, atol=1e-6)


@pytest.mark.parametrize("name", REFINEMENTS)
def test_a_picture_is_guided_alike_whatever_is_beside_it(name: str) -> None:
    sampling = SamplingConfig(guidance_scale=3, **REFINEMENTS[name])
    whole, halves = combination(sampling), [combination(sampling) for _ in range(3)]
    for step in range(3):
        batch = images(20 + step)
        together = whole(*batch)
        for i, alone in enumerate(halves):
            one = alone(*(part[i : i + 1] for part in batch))
            torch.testing.assert_close(one, together[i : i + 1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", REFINEMENTS)
def test_two_predictions_that_agree_are_left_as_they_are(name: str) -> None:
    x, x0, _ = images(4)
    combine = combination(SamplingConfig(guidance_scale=7, **REFINEMENTS[name]))
    for _ in range(2):
        torch.testing.assert_close(combine(x, x0, x0.clone()), x0, atol=1e-6, rtol=1e-6)


# Where the two predictions come from


class Network:
    """Linear in x; its answer depends on the time and the text. Counts what it is asked."""

    def __init__(self, gain: float = 0.5) -> None:
        self.gain = gain
        self.rows: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, y: TextConditioning) -> Tensor:
        self.rows.append(len(x))
        assert len(y.tokens) == len(y.mask) == len(x)
        words = (y.tokens * y.mask[..., None]).sum(dim=(1, 2)).view(-1, 1, 1, 1)
        return self.gain * x + torch.tanh(words) - t.view(-1, 1, 1, 1) / 1000


def texts() -> tuple[TextConditioning, TextConditioning]:
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    null_mask = torch.tensor([[True] + [False] * 4])
    return TextConditioning(randn(2, 5, 8, seed=5) / 5, mask), TextConditioning(
        torch.full((1, 5, 8), 0.1), null_mask
    )


def guide_of(model: Network, objective: Objective) -> Callable[[Tensor, float], Tensor]:
    text, null = texts()
    alone = SamplingConfig(guidance_scale=1)
    return guided_denoiser(model, objective, text, null, alone, torch.float32)


@pytest.mark.parametrize("scale", [0.0, 1.7, 5.0])
@pytest.mark.parametrize("name", REFINEMENTS)
def test_a_model_that_guides_itself_is_not_guided(name: str, scale: float) -> None:
    objective, model, (text, null) = (
        Objective(FlowMatchingSchedule(), "velocity"),
        Network(),
        texts(),
    )
    sampling = SamplingConfig(guidance_scale=scale, **REFINEMENTS[name])
    guide = guide_of(model, objective)
    denoise = guided_denoiser(model, objective, text, null, sampling, torch.float32, guide)
    for timestep in (900.0, 300.0):
        x = randn(2, 3, 4, 4)
        torch.testing.assert_close(denoise(x, timestep), guide(x, timestep), atol=1e-6, rtol=1e-6)


def test_autoguidance_moves_away_from_the_weaker_model_for_the_same_text() -> None:
    objective, model, weak, (text, null) = (
        Objective(FlowMatchingSchedule(), "sample"),
        Network(),
        Network(gain=0.3),
        texts(),
    )
    sampling = SamplingConfig(guidance_scale=2.5, guidance_interval=(0.2, 0.8))
    guide = guide_of(weak, objective)
    denoise = guided_denoiser(model, objective, text, null, sampling, torch.float32, guide)
    x, t = randn(2, 3, 4, 4), torch.full((2,), 500.0)
    strong, weaker = Network()(x, t, text), Network(gain=0.3)(x, t, text)
    torch.testing.assert_close(denoise(x, 500.0), 2.5 * strong + (1 - 2.5) * weaker)
    assert (model.rows, weak.rows) == ([2], [2])  # no empty text, and no second batch of it
    denoise(x, 900.0)
    assert (model.rows, weak.rows) == ([2, 2], [2])  # outside of the interval the guide rests


# Steps of zero velocity


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_zero_init_stays_at_the_noise_for_the_first_steps(shift: float) -> None:
    sampling = SamplingConfig(
        scheduler_type="euler", num_inference_steps=8, zero_init_steps=3, shift=shift
    )
    noise_schedule, objective, model, (text, null) = (
        FlowMatchingSchedule(),
        Objective(FlowMatchingSchedule(), "velocity"),
        Network(),
        texts(),
    )
    denoise = guided_denoiser(model, objective, text, null, sampling, torch.float32)
    noise = randn(2, 3, 4, 4)
    found = SOLVERS["euler"](
        denoise, noise, inference_timesteps(sampling, noise_schedule), noise_schedule
    )

    # Euler's method on the velocities, those of the first three steps being zero.
    x, times = noise, noise_schedule.inference_timesteps(8, shift)
    for i in range(8):
        t = float(times[i])
        v = torch.zeros_like(x) if i < 3 else (x - denoise(x, t)) / (t / 1000)
        x = x + (float(times[i + 1]) - t) / 1000 * v
    torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-5)
    assert len(inference_timesteps(sampling, noise_schedule, strength=0.5)) == len(
        noise_schedule.inference_timesteps(8, shift, strength=0.5)
    )  # a drawing from a picture has no such steps


# What it costs


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_inference_steps": 20}, 40),
        ({"num_inference_steps": 20, "guidance_scale": 1.0}, 20),
        ({"num_inference_steps": 20, "guidance_scale": 0.0}, 40),
        ({"num_inference_steps": 20, "scheduler_type": "heun"}, 78),
        ({"num_inference_steps": 20, "scheduler_type": "heun", "guidance_scale": 1}, 39),
        ({"num_inference_steps": 20, "zero_init_steps": 2}, 36),
        # Times 1000, 900, ..., 100: five of them are from 300 to 700.
        ({"num_inference_steps": 10, "guidance_interval": (0.3, 0.7)}, 15),
        ({"num_inference_steps": 1}, 2),
    ],
)
def test_evaluations_are_counted(settings: dict, expected: int) -> None:
    assert function_evaluations(SamplingConfig(**settings), FlowMatchingSchedule()) == expected


@pytest.mark.parametrize("noise_schedule", [FlowMatchingSchedule(), VPSchedule()])
@pytest.mark.parametrize("scheduler_type", SOLVERS)
@pytest.mark.parametrize("strength", [1.0, 0.45, 0.0])
def test_as_many_evaluations_are_counted_as_the_network_does(
    scheduler_type: str, noise_schedule: NoiseSchedule, strength: float
) -> None:
    sampling = SamplingConfig(
        scheduler_type=scheduler_type, num_inference_steps=7, guidance_interval=(0.25, 0.75)
    )
    objective, model, (text, null) = Objective(noise_schedule, "epsilon"), Network(), texts()
    denoise = guided_denoiser(model, objective, text, null, sampling, torch.float32)
    times = inference_timesteps(sampling, noise_schedule, strength)
    SOLVERS[scheduler_type](
        denoise, randn(2, 3, 4, 4), times, noise_schedule, lambda _: torch.zeros(1)
    )
    assert function_evaluations(sampling, noise_schedule, strength) == sum(model.rows) / 2


# Settings that do not go together


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sampling.guidance_type=zero"], "must be 'cfg', 'cfg_zero_star' or 'apg'"),
        (["sampling.zero_init_steps=20"], "must be below sampling.num_inference_steps"),
        (["sampling.apg_momentum=-1"], "greater than -1"),
        (["sampling.guidance_rescale=1.5"], "less than or equal to 1"),
        (
            ["scheduler.objective=diffusion", "sampling.guidance_type=cfg_zero_star"],
            "cfg_zero_star is only valid with scheduler.objective=flow_matching",
        ),
        (
            ["scheduler.objective=diffusion", "sampling.zero_init_steps=1"],
            "sampling.zero_init_steps: only valid with scheduler.objective=flow_matching",
        ),
    ],
)
def test_what_cannot_be_guided_with_is_named(overrides: list[str], said: str) -> None:
    with pytest.raises(LimnerError, match="sampling") as error:
        load_config(None, overrides)
    assert said in str(error.value)
