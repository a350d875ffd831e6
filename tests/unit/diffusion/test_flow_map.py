"""Flow maps against what is known in closed form: of a Gaussian the ODE is linear."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from limner.diffusion.flow_map import (
    HUBER,
    LEAST_ALPHA,
    end_of_step,
    flow_map_denoiser,
    flow_map_loss,
    picture_ahead,
    timesteps_from,
)
from limner.diffusion.noise_schedule import FlowMatchingSchedule, NoiseSchedule, VPSchedule
from limner.diffusion.objective import Objective
from limner.diffusion.solvers import ddim
from limner.text.conditioning import TextConditioning

FLOW, VP = FlowMatchingSchedule(), VPSchedule()
KINDS = [
    *((FLOW, kind) for kind in ("velocity", "sample", "epsilon")),
    *((VP, kind) for kind in ("v_prediction", "sample", "epsilon")),
]
NO_TEXT = TextConditioning(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))
MEAN, SPREAD = 0.3, 0.5


def spread_at(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """Standard deviation of x_t where pictures are N(MEAN, SPREAD^2)."""
    return (schedule.alpha(t) ** 2 * SPREAD**2 + schedule.sigma(t) ** 2).sqrt()


def moved(schedule: NoiseSchedule, x: Tensor, s: Tensor, r: Tensor) -> Tensor:
    """Where the ODE takes x from s to r: each keeps its place in the Gaussian."""
    s, r = s.reshape(-1, 1, 1, 1), r.reshape(-1, 1, 1, 1)
    place = (x - schedule.alpha(s) * MEAN) / spread_at(schedule, s)
    return schedule.alpha(r) * MEAN + place * spread_at(schedule, r)


def output_for(objective: Objective, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """What a flow map puts out that means this picture."""
    schedule = objective.noise_schedule
    alpha, sigma = (f(t).reshape(-1, 1, 1, 1) for f in (schedule.alpha, schedule.sigma))
    if (schedule, objective.prediction_type) == (VP, "epsilon"):
        return sigma * x + alpha.clamp(min=LEAST_ALPHA) * (alpha * x - x0) / sigma
    noise = (x - alpha * x0) / sigma
    return objective.target(x0, noise, t)


def states(schedule: NoiseSchedule, s: float) -> Tensor:
    t = torch.tensor([s], dtype=torch.float64)
    noise = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    return schedule.alpha(t) * MEAN + spread_at(schedule, t) * noise


def towards(x_s: Tensor, x_r: Tensor, s: Tensor, r: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Towards which one step of `ddim` leads from x_s to x_r."""
    s, r = s.reshape(-1, 1, 1, 1), r.reshape(-1, 1, 1, 1)
    ratio = schedule.sigma(r) / schedule.sigma(s)
    return (x_r - ratio * x_s) / (schedule.alpha(r) - ratio * schedule.alpha(s))


def exact(objective: Objective) -> Callable[[Tensor, Tensor, object, Tensor], Tensor]:
    """A network that is the flow map of the Gaussian."""

    def model(x: Tensor, t: Tensor, text: object, span: Tensor) -> Tensor:
        there = moved(objective.noise_schedule, x, t, t - span)
        x0 = towards(x, there, t, t - span, objective.noise_schedule)
        return output_for(objective, x, x0, t)

    return model


@pytest.mark.parametrize(("schedule", "kind"), KINDS)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_with_an_exact_map_any_number_of_steps_ends_at_the_same_picture(
    schedule: NoiseSchedule, kind: str, count: int
) -> None:
    objective = Objective(schedule, kind)
    times = schedule.inference_timesteps(8)[:: 8 // count]
    if (schedule, kind) == (FLOW, "epsilon"):
        times[0] = 0.9 * times[0]  # of noise alone, epsilon says nothing about the picture
    x = states(schedule, float(times[0])).float()
    denoise = flow_map_denoiser(exact(objective), objective, NO_TEXT, times, torch.float32)
    drawn = ddim(denoise, x, times, schedule)
    first, last = times[[0]], times[[-1]]
    assert torch.allclose(drawn, moved(schedule, x, first, last).float(), atol=2e-3)


@pytest.mark.parametrize(("schedule", "kind"), KINDS)
def test_the_loss_of_an_exact_map_is_nothing_and_grows_with_the_miss(
    schedule: NoiseSchedule, kind: str
) -> None:
    objective = Objective(schedule, kind)
    s, r = torch.tensor([800.0, 500.0, 400.0, 90.0]), torch.tensor([300.0, 0.0, 399.0, 80.0])
    x = torch.cat([states(schedule, float(one))[:1] for one in s])
    there = moved(schedule, x, s.double(), r.double())
    output = exact(objective)(x, s.double(), None, (s - r).double()).float()
    losses = flow_map_loss(objective, output, x.float(), there.float(), s, r)
    assert losses.max() < 1e-3
    for miss in (0.001, 10.0):
        worse = flow_map_loss(objective, output, x.float(), there.float() + miss, s, r)
        penalty = miss**2 if miss < HUBER else 2 * HUBER * (miss - HUBER)
        assert torch.allclose(worse * (s - r) / 1000, torch.full((4,), penalty), rtol=0.05)


def test_epsilon_means_what_it_does_to_the_teacher_where_that_is_well_defined() -> None:
    """And of noise alone, what the output misses is in the image at most 1 / LEAST_ALPHA times."""
    objective = Objective(VP, "epsilon")
    x, output, miss = torch.randn(3, 6, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    s = torch.tensor([999.0, 874.0, 700.0, 500.0, 300.0, 100.0])
    found, taught = (f(output, x, s) for f in (partial(picture_ahead, objective), objective.to_x0))
    clear = VP.alpha(s) >= LEAST_ALPHA
    assert clear.tolist() == [False, False, False, True, True, True]
    assert torch.allclose(found[clear], taught[clear], atol=1e-5)
    assert found[~clear].abs().max() < 2 * 4 / LEAST_ALPHA
    assert taught[0].abs().max() > 100
    apart = picture_ahead(objective, output + miss, x, s) - found
    assert (apart.abs() <= miss.abs() / LEAST_ALPHA + 1e-4).all()


@pytest.mark.parametrize(("schedule", "kind"), KINDS)
def test_a_step_ends_where_ddim_takes_it(schedule: NoiseSchedule, kind: str) -> None:
    objective = Objective(schedule, kind)
    times = torch.tensor([700.0, 250.0], dtype=torch.float64)
    x, output = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    denoise = flow_map_denoiser(lambda *_: output, objective, NO_TEXT, times, torch.float32)
    wanted = ddim(denoise, x, times, schedule)
    s, r = times.float()[:, None].expand(2, 3)
    assert torch.allclose(end_of_step(objective, output, x, s, r), wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("strength", "steps", "places"),
    [
        (0.6, 2, [3, 4, 8]),
        (0.6, 1, [3, 4, 8]),
        (0.5, 1, [4, 8]),
        (0.5, 4, [4, 6, 8]),
        (0.9, 1, [1, 2, 4, 8]),
        (0.99, 1, [0, 8]),
        (0.01, 2, [7, 8]),
        (0.0, 2, [8]),
        (0.4, 3, [5, 6, 8]),
        (0.9, 16, [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_image_to_image_takes_steps_that_were_learned(
    strength: float, steps: int, places: list[int]
) -> None:
    known = torch.tensor([1000.0, 900, 800, 650, 500, 350, 200, 100, 0], dtype=torch.float64)
    assert torch.equal(timesteps_from(strength, known, steps), known[places])


class Student(nn.Module):
    """A small network of two numbers, their time, and the span."""

    def __init__(self) -> None:
        super().__init__()
        width = 96
        self.layers = nn.Sequential(
            *(nn.Linear(10, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()),
            nn.Linear(width, 2),
        )

    def forward(self, x: Tensor, t: Tensor, text: object, span: Tensor) -> Tensor:
        s, d = t[:, None] / 1000, span[:, None] / 1000
        waves = [f(k * math.pi * s) for k in (0.5, 1) for f in (torch.sin, torch.cos)]
        flat = x.flatten(1)
        told = torch.cat([flat, s, d, d * s, *waves, s * s], dim=1)
        return self.layers(told).reshape(x.shape)


def mixture_velocity(x: Tensor, t: Tensor) -> Tensor:
    """Of pictures that are two points, (1, 0) and (-1, 0.5), each with a spread of 0.2."""
    s = t.reshape(-1, 1) / 1000
    points = torch.tensor([[1.0, 0.0], [-1.0, 0.5]])
    flat = x.flatten(1)
    variance = (1 - s) ** 2 * 0.04 + s**2
    far = ((flat[:, None] - (1 - s)[..., None] * points) ** 2).sum(2)
    weight = torch.softmax(-far / (2 * variance), dim=1)[..., None]
    gain = ((1 - s) * 0.04 / variance)[..., None]
    means = points + gain * (flat[:, None] - (1 - s)[..., None] * points)
    x0 = (weight * means).sum(1)
    return ((flat - x0) / s.clamp(min=1e-6)).reshape(x.shape)


def test_a_student_learns_the_map_of_a_mixture_and_it_composes() -> None:
    torch.manual_seed(0)
    objective, steps = Objective(FLOW, "velocity"), 8
    times = FLOW.inference_timesteps(steps)
    x = torch.randn(4096, 1, 1, 2)
    trajectory = [x]
    fine = FLOW.inference_timesteps(steps * 8)
    for k, (s, r) in enumerate(zip(fine.tolist(), fine[1:].tolist(), strict=False)):
        x = x - (s - r) / 1000 * mixture_velocity(x, torch.full((len(x),), s))
        if (k + 1) % 8 == 0:
            trajectory.append(x)
    states = torch.stack(trajectory, dim=1)
    student = Student()
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    rounds = 1500
    for k in range(rounds):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - k / rounds)
        rows = torch.randint(len(states), (256,))
        i = torch.randint(steps, (256,))
        j = i + 1 + (torch.rand(256) * (steps - i)).long()
        s, r = times[i].float(), times[j].float()
        output = student(states[rows, i], s, None, s - r)
        loss = flow_map_loss(objective, output, states[rows, i], states[rows, j], s, r).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    noise, truth = states[:512, 0], states[:512, -1]

    def drawn(count: int) -> Tensor:
        grid = times[:: steps // count]
        denoise = flow_map_denoiser(student, objective, NO_TEXT, grid, torch.float32)
        with torch.no_grad():
            return ddim(denoise, noise, grid, FLOW)

    def apart(a: Tensor, b: Tensor) -> float:
        """The median: between two points few trajectories part, and there nobody is sure."""
        return float((a - b).flatten(1).norm(dim=1).median())

    without = lambda x, t, text, span: mixture_velocity(x, t)  # noqa: E731
    naive = flow_map_denoiser(without, objective, NO_TEXT, times[::8], torch.float32)
    one_step_of_the_field = apart(ddim(naive, noise, times[::8], FLOW), truth)
    assert one_step_of_the_field > 0.5
    for count in (1, 2, 4):
        assert apart(drawn(count), truth) < 0.1
    assert apart(drawn(1), drawn(2)) < 0.1  # s to r is s to m to r
    # Over a single step of the trajectory the map is nearly the field itself.
    s = times[3].float().expand(512)
    with torch.no_grad():
        u = student(states[:512, 3], s, None, s - times[4].float())
    v = (states[:512, 3] - states[:512, 4]) / ((times[3] - times[4]).float() / 1000)
    assert apart(u, v) < 0.2
