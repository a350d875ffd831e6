"""Solvers against diffusers and against an exact solution; guidance against its formula."""

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from limner.config import SamplingConfig
from limner.diffusion.guidance import guided_denoiser
from limner.diffusion.noise_schedule import FlowMatchingSchedule, NoiseSchedule, VPSchedule
from limner.diffusion.objective import Objective
from limner.diffusion.solvers import SOLVERS
from limner.errors import LimnerError
from limner.text.conditioning import TextConditioning

BETA_SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2"]


def start(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def fresh_noise(i: int) -> Tensor:
    return start(seed=100 + i)


def network(x: Tensor, timestep: float) -> Tensor:
    """A smooth, bounded, nonlinear stand-in for a network that predicts the picture."""
    weight = torch.randn(48, 48, generator=torch.Generator().manual_seed(7)) / 48**0.5
    return torch.tanh(x.flatten(1) @ weight.to(x) + timestep / 1000 - 0.5).view_as(x)


def run_diffusers(scheduler: Any, x: Tensor, predict: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The loop of a diffusers pipeline; `predict` gives what the scheduler wants predicted."""
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(predict(seen, t), t, x).prev_sample
    return x


def predict_picture(x: Tensor, timestep: Tensor) -> Tensor:
    return network(x, float(timestep))


def predict_velocity(x: Tensor, timestep: Tensor) -> Tensor:
    return (x - network(x, float(timestep))) / (float(timestep) / 1000)


def solve(name: str, noise_schedule: NoiseSchedule, timesteps: Tensor) -> Tensor:
    return SOLVERS[name](network, start(), timesteps, noise_schedule, fresh_noise)


DIFFUSION_SCHEDULERS = [
    ("ddim", "DDIMScheduler", {"clip_sample": False}),
    ("euler", "EulerDiscreteScheduler", {}),
    ("heun", "HeunDiscreteScheduler", {}),
    ("dpmsolver++", "DPMSolverMultistepScheduler", {"euler_at_final": True}),
    ("unipc", "UniPCMultistepScheduler", {}),
]


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
@pytest.mark.parametrize(("name", "class_name", "options"), DIFFUSION_SCHEDULERS)
def test_deterministic_solvers_on_the_diffusion_path_are_those_of_diffusers(
    name: str, class_name: str, options: dict, beta_schedule: str
) -> None:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": beta_schedule}
    scheduler = getattr(diffusers, class_name)(
        prediction_type="sample", timestep_spacing="trailing", **betas, **options
    )
    scheduler.set_timesteps(20)
    x = start().double()
    if class_name in ("EulerDiscreteScheduler", "HeunDiscreteScheduler"):
        # They hold x / alpha, which is 20,000 times the noise at the start of the cosine: float32
        # would cost them, not us, the last digits.
        scheduler.sigmas = scheduler.sigmas.double()
        x = x * (scheduler.sigmas[0] ** 2 + 1).sqrt()  # 1 / alpha
    theirs = run_diffusers(scheduler, x, predict_picture).float()
    noise_schedule = VPSchedule(**betas)
    ours = solve(name, noise_schedule, noise_schedule.inference_timesteps(20))
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_ddpm_is_that_of_diffusers_fed_with_the_same_noise(
    beta_schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.schedulers import scheduling_ddpm

    scheduler = diffusers.DDPMScheduler(
        beta_schedule=beta_schedule,
        prediction_type="sample",
        timestep_spacing="trailing",
        clip_sample=False,
        variance_type="fixed_small",
    )
    scheduler.set_timesteps(25)
    draws = iter(range(25))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: fresh_noise(next(draws)))
    theirs = run_diffusers(scheduler, start(), predict_picture)
    noise_schedule = VPSchedule(beta_schedule=beta_schedule)
    ours = solve("ddpm", noise_schedule, noise_schedule.inference_timesteps(25))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", ["euler", "ddim"])
def test_euler_on_the_flow_path_is_that_of_diffusers(name: str, shift: float) -> None:
    timesteps = FlowMatchingSchedule().inference_timesteps(12, shift)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    # Left alone, it ends at 1 / 1000 and then goes to 0, one step more: hand it the same grid.
    scheduler.set_timesteps(sigmas=torch.linspace(1, 0, 13)[:-1].tolist())
    theirs = run_diffusers(scheduler, start(), predict_velocity)
    ours = solve(name, FlowMatchingSchedule(), timesteps)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_heun_on_the_flow_path_is_that_of_diffusers() -> None:
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(12)
    # Its grid ends at 1 / 1000 and then at 0; we take it as it is.
    ends = torch.linspace(1000, 1, 12, dtype=torch.float64)
    theirs = run_diffusers(scheduler, start(), predict_velocity)
    ours = solve(
        "heun", FlowMatchingSchedule(), torch.cat([ends, torch.zeros(1, dtype=torch.float64)])
    )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_dpmsolver_on_the_flow_path_is_that_of_diffusers(shift: float) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True,
        flow_shift=shift,
        prediction_type="flow_prediction",
        euler_at_final=True,
    )
    scheduler.set_timesteps(20)
    # It begins just short of pure noise, to keep its log-SNR finite, and rounds the times that
    # the network is told down to whole ones: take over the first, and mend the second.
    sigmas = scheduler.sigmas.double()
    scheduler.timesteps = sigmas[:-1] * 1000
    theirs = run_diffusers(scheduler, start(), predict_velocity)
    ours = solve("dpmsolver++", FlowMatchingSchedule(), sigmas * 1000)
    torch.testing.assert_close(ours, theirs.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [3, 8, 20])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_unipc_on_the_flow_path_is_that_of_diffusers(shift: float, steps: int) -> None:
    scheduler = diffusers.UniPCMultistepScheduler(
        use_flow_sigmas=True, flow_shift=shift, prediction_type="flow_prediction", solver_order=2
    )
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double()  # likewise
    scheduler.timesteps = sigmas[:-1] * 1000
    theirs = run_diffusers(scheduler, start(), predict_velocity)
    ours = solve("unipc", FlowMatchingSchedule(), sigmas * 1000)
    torch.testing.assert_close(ours, theirs.float(), atol=1e-4, rtol=1e-4)


def gaussian_denoiser(
    noise_schedule: NoiseSchedule, mean: float, std: float
) -> Callable[[Tensor, float], Tensor]:
    """E[x_0 | x_t] where the pictures' values are normal: what a perfect network would say."""

    def denoise(x: Tensor, timestep: float) -> Tensor:
        time = torch.tensor(timestep, dtype=torch.float64)
        alpha, sigma = noise_schedule.alpha(time).item(), noise_schedule.sigma(time).item()
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return mean + gain * (x - alpha * mean)

    return denoise


@pytest.mark.parametrize("noise_schedule", [FlowMatchingSchedule(), VPSchedule()])
@pytest.mark.parametrize(
    ("name", "order"), [("ddim", 1), ("euler", 1), ("heun", 2), ("dpmsolver++", 2), ("unipc", 2)]
)
def test_solvers_converge_to_the_exact_solution_at_their_order(
    name: str, order: int, noise_schedule: NoiseSchedule
) -> None:
    mean, std = 0.3, 0.5
    x = start().double()
    # For Gaussian pictures the ODE keeps (x_t - alpha * mean) / std_t as it is, std_t being the
    # standard deviation of x_t. The times stay off both ends, where lambda is infinite.
    times = torch.linspace(700, 300, 81, dtype=torch.float64)
    alpha, sigma = noise_schedule.alpha(times), noise_schedule.sigma(times)
    std_t = (alpha**2 * std**2 + sigma**2).sqrt()
    exact = alpha[-1] * mean + (x - alpha[0] * mean) / std_t[0] * std_t[-1]
    errors = []
    for stride in (2, 1):
        end = SOLVERS[name](
            gaussian_denoiser(noise_schedule, mean, std), x, times[::stride], noise_schedule
        )
        errors.append((end - exact).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.05)


@pytest.mark.parametrize("noise_schedule", [FlowMatchingSchedule(), VPSchedule()])
def test_ddpm_keeps_to_the_distribution_of_the_path(noise_schedule: NoiseSchedule) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(_: int = 0) -> Tensor:
        return torch.randn(8, 3, 64, 64, generator=generator)

    # If the picture is known, x_t must stay alpha * picture + sigma * noise whatever the steps.
    times = torch.tensor([1000.0, 999.0, 950.0, 600.0, 590.0, 300.0], dtype=torch.float64)
    x = SOLVERS["ddpm"](lambda x, t: torch.full_like(x, 0.7), draw(), times, noise_schedule, draw)
    alpha, sigma = noise_schedule.alpha(times)[-1].item(), noise_schedule.sigma(times)[-1].item()
    assert x.mean().item() == pytest.approx(0.7 * alpha, abs=0.02)
    assert x.std().item() == pytest.approx(sigma, rel=0.01)


@pytest.mark.parametrize("noise_schedule", [FlowMatchingSchedule(), VPSchedule()])
@pytest.mark.parametrize("name", SOLVERS)
def test_from_pure_noise_every_solver_arrives_at_the_gaussian_of_the_pictures(
    name: str, noise_schedule: NoiseSchedule
) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(_: int = 0) -> Tensor:
        return torch.randn(4, 3, 32, 32, generator=generator)

    x = SOLVERS[name](
        gaussian_denoiser(noise_schedule, 0.3, 0.5),
        draw(),
        noise_schedule.inference_timesteps(100),
        noise_schedule,
        draw,
    )
    assert x.dtype == torch.float32
    assert x.mean().item() == pytest.approx(0.3, abs=0.02)
    assert x.std().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    "noise_schedule",
    [FlowMatchingSchedule(), *(VPSchedule(beta_schedule=b) for b in BETA_SCHEDULES)],
)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_denoiser_that_knows_the_picture_is_followed_exactly(
    name: str, noise_schedule: NoiseSchedule
) -> None:
    image = start(seed=3).clamp(-1, 1)
    for steps in (1, 2, 3, 10):
        x = SOLVERS[name](
            lambda x, t: image,
            start(),
            noise_schedule.inference_timesteps(steps),
            noise_schedule,
            fresh_noise,
        )
        torch.testing.assert_close(x, image, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "calls_expected"), [("ddim", 6), ("dpmsolver++", 6), ("unipc", 6), ("heun", 11)]
)
def test_callback_sees_each_guess_once_and_the_network_is_called_no_more_than_needed(
    name: str, calls_expected: int
) -> None:
    calls, seen = [], []

    def denoise(x: Tensor, timestep: float) -> Tensor:
        calls.append(timestep)
        return network(x, timestep)

    noise_schedule = VPSchedule()
    x = SOLVERS[name](
        denoise,
        start(),
        noise_schedule.inference_timesteps(6),
        noise_schedule,
        callback=lambda i, x0: seen.append((i, x0)),
    )
    assert len(calls) == calls_expected
    assert min(calls) >= 0  # the network never sees the clean end, which it was not trained at
    assert [i for i, _ in seen] == list(range(6))
    # the last step goes to the clean picture itself
    torch.testing.assert_close(x, seen[-1][1])


def test_ddpm_without_noise_says_so() -> None:
    with pytest.raises(LimnerError, match="noise"):
        SOLVERS["ddpm"](
            network, start(), FlowMatchingSchedule().inference_timesteps(4), FlowMatchingSchedule()
        )


class RecordingModel:
    """A network that is linear in x and whose answer depends on time and on the text."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.inputs: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor, t: Tensor, y: TextConditioning) -> Tensor:
        self.batches.append(x.shape[0])
        self.inputs.append((x, t))
        assert t.shape == (x.shape[0],)
        assert t.dtype == torch.float32
        assert y.tokens.shape[0] == y.mask.shape[0] == x.shape[0]
        words = (y.tokens * y.mask[..., None]).sum(dim=(1, 2)).view(-1, 1, 1, 1)
        return 0.5 * x + torch.tanh(words) - t.view(-1, 1, 1, 1) / 1000


def guided_by(scale: float, low: float = 0.0, high: float = 1.0) -> SamplingConfig:
    return SamplingConfig(guidance_scale=scale, guidance_interval=(low, high))


def texts() -> tuple[TextConditioning, TextConditioning]:
    tokens = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(5)) / 5
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    null_mask = torch.tensor([[True] + [False] * 4])
    return TextConditioning(tokens, mask), TextConditioning(torch.full((1, 5, 8), 0.1), null_mask)


GUIDED = [
    (FlowMatchingSchedule(), "sample"),
    (FlowMatchingSchedule(), "velocity"),
    (FlowMatchingSchedule(), "epsilon"),
    (VPSchedule(), "epsilon"),
    (VPSchedule(), "v_prediction"),
]


@pytest.mark.parametrize(("noise_schedule", "prediction_type"), GUIDED)
@pytest.mark.parametrize("timestep", [40.0, 600.0, 999.0])
def test_guidance_extrapolates_the_networks_own_prediction(
    noise_schedule: NoiseSchedule, prediction_type: str, timestep: float
) -> None:
    objective, model, (text, null) = (
        Objective(noise_schedule, prediction_type),
        RecordingModel(),
        texts(),
    )
    denoise = guided_denoiser(model, objective, text, null, guided_by(2.5), torch.float32)
    guided = denoise(start(), timestep)
    assert model.batches == [4]

    t = torch.full((2,), timestep)
    null_twice = TextConditioning(null.tokens.repeat(2, 1, 1), null.mask.repeat(2, 1))
    conditional, unconditional = model(start(), t, text), model(start(), t, null_twice)
    # Ho & Salimans write it for the network's output; the picture that follows is the same
    output = unconditional + 2.5 * (conditional - unconditional)
    expected = objective.to_x0(output, start(), t)
    scale = expected.abs().max().item()
    torch.testing.assert_close(guided, expected, atol=1e-5 * scale, rtol=0)


def test_without_guidance_the_network_is_called_once_with_the_text_alone() -> None:
    objective, model, (text, null) = (
        Objective(FlowMatchingSchedule(), "sample"),
        RecordingModel(),
        texts(),
    )
    inside = guided_denoiser(model, objective, text, null, guided_by(3.0, 0.2, 0.8), torch.float32)
    unguided = guided_denoiser(model, objective, text, null, guided_by(1.0), torch.float32)
    for timestep, batch in [(199.0, 2), (200.0, 4), (500.0, 4), (800.0, 4), (801.0, 2)]:
        model.batches.clear()
        guided = inside(start(), timestep)
        assert model.batches == [batch]
        model.batches.clear()
        plain = unguided(start(), timestep)
        assert model.batches == [2]
        assert torch.equal(plain, model(start(), torch.full((2,), timestep), text))
        assert torch.equal(guided, plain) == (batch == 2)


def test_guidance_scale_0_is_the_picture_for_no_text() -> None:
    objective, model, (text, null) = (
        Objective(FlowMatchingSchedule(), "sample"),
        RecordingModel(),
        texts(),
    )
    denoise = guided_denoiser(model, objective, text, null, guided_by(0.0), torch.float32)
    no_text = guided_denoiser(
        model,
        objective,
        TextConditioning(null.tokens.repeat(2, 1, 1), null.mask.repeat(2, 1)),
        null,
        guided_by(1.0),
        torch.float32,
    )
    torch.testing.assert_close(denoise(start(), 500.0), no_text(start(), 500.0))


def test_the_network_computes_in_the_asked_type_and_the_picture_stays_float32() -> None:
    text, null = texts()
    layer = torch.nn.Linear(4, 4)
    seen = []

    def model(x: Tensor, t: Tensor, y: TextConditioning) -> Tensor:
        output = layer(x)
        seen.append(output.dtype)
        return output

    for dtype in (torch.bfloat16, torch.float32):
        denoise = guided_denoiser(
            model, Objective(FlowMatchingSchedule(), "velocity"), text, null, guided_by(2.0), dtype
        )
        assert denoise(start(), 500.0).dtype == torch.float32
    assert seen == [torch.bfloat16, torch.float32]
