"""Paths and objectives: the schedules of diffusers, round trips, the loss written out by hand."""

import math
import pickle

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from limner.diffusion.noise_schedule import FlowMatchingSchedule, NoiseSchedule, VPSchedule
from limner.diffusion.objective import Objective
from limner.errors import LimnerError

BETA_SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2"]
PAIRS = [
    (FlowMatchingSchedule(), "sample"),
    (FlowMatchingSchedule(), "epsilon"),
    (FlowMatchingSchedule(), "velocity"),
    (VPSchedule(), "sample"),
    (VPSchedule(), "epsilon"),
    (VPSchedule(), "v_prediction"),
]


def images(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1,
        torch.randn(count, 3, 4, 4, generator=generator),
    )


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_diffusion_path_is_the_schedule_of_diffusers(beta_schedule: str) -> None:
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule=beta_schedule)
    noise_schedule = VPSchedule(1000, 0.00085, 0.012, beta_schedule)
    timesteps = torch.arange(1000)
    expected = scheduler.alphas_cumprod
    torch.testing.assert_close(
        noise_schedule.alpha(timesteps), expected.sqrt(), atol=1e-6, rtol=1e-4
    )
    torch.testing.assert_close(
        noise_schedule.sigma(timesteps), (1 - expected).sqrt(), atol=1e-5, rtol=0
    )
    # the noise levels of all, computed in float64, against diffusers' float32
    log_snr = (expected.double() / (1 - expected.double())).log() / 2
    torch.testing.assert_close(
        noise_schedule.log_snr(timesteps.double()), log_snr, atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_diffusion_path_preserves_variance_at_every_time(beta_schedule: str) -> None:
    noise_schedule = VPSchedule(beta_schedule=beta_schedule)
    times = torch.linspace(-1, 1000, 777, dtype=torch.float64)
    torch.testing.assert_close(
        noise_schedule.alpha(times) ** 2 + noise_schedule.sigma(times) ** 2,
        torch.ones(777).double(),
    )
    assert (noise_schedule.log_snr(times).diff() <= 0).all()


def test_diffusion_path_between_and_beyond_whole_timesteps() -> None:
    noise_schedule = VPSchedule()
    a, middle, b = noise_schedule.log_snr(
        torch.tensor([500.0, 500.5, 501.0], dtype=torch.float64)
    ).tolist()
    assert middle == pytest.approx((a + b) / 2, abs=1e-12)
    clean, past_end, end = noise_schedule.alpha(torch.tensor([-1.0, 1000.0, 999.0])).tolist()
    assert clean == 1
    assert noise_schedule.sigma(torch.tensor(-1)) == 0
    assert noise_schedule.sigma(torch.tensor(0)).item() == pytest.approx(1e-4**0.5)
    assert past_end == end


@pytest.mark.parametrize("noise_schedule", [FlowMatchingSchedule(), VPSchedule()])
def test_log_snr_and_ode_sigma_agree_with_alpha_and_sigma(noise_schedule: NoiseSchedule) -> None:
    times = torch.linspace(1, 998, 50, dtype=torch.float64)
    alpha, sigma = noise_schedule.alpha(times), noise_schedule.sigma(times)
    torch.testing.assert_close(noise_schedule.log_snr(times), (alpha / sigma).log())
    scale = 1 if isinstance(noise_schedule, FlowMatchingSchedule) else alpha
    torch.testing.assert_close(noise_schedule.ode_sigma(times), sigma / scale)


@pytest.mark.parametrize("noise_schedule", [FlowMatchingSchedule(), VPSchedule()])
def test_coefficients_keep_shape_and_give_float32_unless_asked_in_float64(
    noise_schedule: NoiseSchedule,
) -> None:
    for dtype, expected in [
        (torch.int64, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        timesteps = torch.tensor([[8, 500], [16, 64]]).to(dtype)
        for value in (
            noise_schedule.alpha(timesteps),
            noise_schedule.sigma(timesteps),
            noise_schedule.log_snr(timesteps),
        ):
            assert value.shape == (2, 2)
            assert value.dtype == expected


@pytest.mark.parametrize(
    "noise_schedule", [FlowMatchingSchedule(500, 0.7, 0.9, 0.1), VPSchedule(500, 1e-3, 0.03)]
)
def test_a_path_survives_pickling_also_after_use(noise_schedule: NoiseSchedule) -> None:
    timesteps = torch.tensor([3.0, 300.0])
    before = noise_schedule.alpha(timesteps)
    copy = pickle.loads(pickle.dumps(noise_schedule))
    assert copy == noise_schedule
    assert torch.equal(copy.alpha(timesteps), before)


def test_flow_training_times_have_the_asked_logit_mean_and_std() -> None:
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    times = FlowMatchingSchedule(logit_mean=1.0, logit_std=0.8).training_timesteps(u)
    cleanness = torch.logit(1 - times / 1000)
    assert cleanness.mean() == pytest.approx(1.0, abs=1e-6)
    assert cleanness.std() == pytest.approx(0.8, abs=1e-3)
    assert times.median() < 300  # mean +1 is mostly clean: sigmoid(-1) = 0.27
    assert (times.diff() > 0).all()


def test_flow_training_times_move_to_those_of_the_end() -> None:
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    noise_schedule = FlowMatchingSchedule(logit_mean=-1.0, logit_mean_end=2.0)
    for moved, mean in ((0.0, -1.0), (0.5, 0.5), (1.0, 2.0)):
        times = noise_schedule.training_timesteps(u, moved)
        torch.testing.assert_close(
            times, FlowMatchingSchedule(logit_mean=mean).training_timesteps(u)
        )
    staying = FlowMatchingSchedule(logit_mean=-1.0)
    assert torch.equal(staying.training_timesteps(u, 1.0), staying.training_timesteps(u))


def test_flow_training_times_mix_in_the_uniform_share() -> None:
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    times = FlowMatchingSchedule(
        logit_mean=0.0, logit_std=0.1, uniform_share=0.2
    ).training_timesteps(u)
    # logit-normal this narrow is all within sigmoid(+-0.6), so what is outside is the uniform part
    outside = (times < 350) | (times > 650)
    assert outside.double().mean() == pytest.approx(0.2 * 0.7, abs=1e-4)
    assert (times < 100).double().mean() == pytest.approx(0.2 * 0.1, abs=1e-4)
    everything = FlowMatchingSchedule(uniform_share=1.0).training_timesteps(u)
    torch.testing.assert_close(everything, u * 1000)


def test_flow_training_times_of_the_extreme_float32_numbers_are_finite_and_in_range() -> None:
    u = torch.tensor([0.0, 2**-24, 0.25, 1 - 2**-24])
    for share in (0.0, 0.25, 1.0):
        times = FlowMatchingSchedule(uniform_share=share).training_timesteps(u)
        assert times.isfinite().all()
        assert ((times >= 0) & (times <= 1000)).all()


def test_diffusion_training_times_are_all_whole_timesteps_alike() -> None:
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    counts = torch.bincount(VPSchedule().training_timesteps(u).long(), minlength=1000)
    assert (counts == 10).all()
    almost_one = torch.tensor([1 - 2**-24])
    assert VPSchedule(num_train_timesteps=999).training_timesteps(almost_one) == 998


def test_flow_inference_times_are_shifted_and_keep_their_ends() -> None:
    times = FlowMatchingSchedule().inference_timesteps(4, shift=3.0)
    assert times.dtype == torch.float64
    # s' = 3 s / (1 + 2 s) at s = 1, 3/4, 1/2, 1/4, 0
    expected = torch.tensor([1, 0.9, 0.75, 0.5, 0], dtype=torch.float64) * 1000
    torch.testing.assert_close(times, expected)
    torch.testing.assert_close(
        FlowMatchingSchedule().inference_timesteps(4),
        torch.tensor([1000.0, 750, 500, 250, 0]).double(),
    )


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("power", [0.7, 1.0, 1.5])
def test_power_and_shift_stretch_and_move_the_logits_of_the_times(
    power: float, shift: float
) -> None:
    times = FlowMatchingSchedule().inference_timesteps(10, shift, power)
    assert (times[0], times[-1]) == (1000, 0)
    even = torch.linspace(0.9, 0.1, 9, dtype=torch.float64)
    expected = power * torch.logit(even) + math.log(shift)
    torch.testing.assert_close(torch.logit(times[1:-1] / 1000), expected)
    for first in (2, 7):  # a part of the way has the steps of the whole
        part = FlowMatchingSchedule().inference_timesteps(
            10, shift, power, float(times[first]) / 1000
        )
        torch.testing.assert_close(part, times[first:], atol=1e-6, rtol=0)


@pytest.mark.parametrize("shift", [0.1 * i for i in range(1, 40)])
def test_the_first_time_is_pure_noise_to_the_last_bit(shift: float) -> None:
    """Beyond it the picture's share is negative, and its logarithm drew black pictures."""
    times = FlowMatchingSchedule().inference_timesteps(8, shift=shift)
    assert times[0] == 1000
    assert torch.isneginf(FlowMatchingSchedule().log_snr(times[:1]))
    assert not torch.isnan(FlowMatchingSchedule().log_snr(times)).any()


@pytest.mark.parametrize("steps", [1, 7, 10, 24, 50, 999, 1000])
def test_diffusion_inference_times_are_diffusers_trailing_ones(steps: int) -> None:
    scheduler = DDPMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    times = VPSchedule().inference_timesteps(steps)
    assert times.tolist() == [*scheduler.timesteps.tolist()[:steps], -1]
    assert (times.diff() < 0).all()


@pytest.mark.parametrize(("noise_schedule", "prediction_type"), PAIRS)
def test_the_target_leads_back_to_the_picture(
    noise_schedule: NoiseSchedule, prediction_type: str
) -> None:
    objective = Objective(noise_schedule, prediction_type)
    timesteps = torch.tensor([1.0, 100.0, 500.0, 900.0, 949.0])
    x0, noise = images(5)
    x_t = objective.add_noise(x0, noise, timesteps)
    output = objective.target(x0, noise, timesteps)
    torch.testing.assert_close(objective.to_x0(output, x_t, timesteps), x0, atol=2e-5, rtol=0)
    loss = objective.loss(output, x0, noise, timesteps)
    assert loss.shape == (5,)
    assert (loss == 0).all()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noise_and_target_are_those_of_diffusers(prediction_type: str) -> None:
    scheduler = DDPMScheduler(beta_schedule="scaled_linear")
    noise_schedule = VPSchedule(beta_schedule="scaled_linear")
    objective = Objective(noise_schedule, prediction_type)
    timesteps = torch.tensor([0, 10, 500, 999])
    x0, noise = images(4)
    torch.testing.assert_close(
        objective.add_noise(x0, noise, timesteps),
        scheduler.add_noise(x0, noise, timesteps),
        atol=1e-5,
        rtol=0,
    )
    expected = noise
    if prediction_type == "v_prediction":
        expected = scheduler.get_velocity(x0, noise, timesteps)
    torch.testing.assert_close(objective.target(x0, noise, timesteps), expected, atol=1e-5, rtol=0)


def test_predicting_the_picture_on_the_flow_path_is_judged_by_its_velocity() -> None:
    by_sample, by_velocity = (
        Objective(FlowMatchingSchedule(), "sample"),
        Objective(FlowMatchingSchedule(), "velocity"),
    )
    timesteps = torch.tensor([60.0, 300.0, 1000.0, 20.0])
    x0, noise = images(4)
    guess = x0 + 0.1 * images(4, seed=1)[1]
    x_t = by_sample.add_noise(x0, noise, timesteps)
    velocity = (x_t - guess) / (timesteps / 1000).view(-1, 1, 1, 1)
    weighted = by_sample.loss(guess, x0, noise, timesteps)
    direct = by_velocity.loss(velocity, x0, noise, timesteps)
    torch.testing.assert_close(weighted[:3], direct[:3], rtol=1e-4, atol=0)
    # below s = 0.05 the weight no longer grows
    unweighted = (guess[3] - x0[3]).square().mean()
    assert weighted[3] == pytest.approx(unweighted.item() / 0.05**2, rel=1e-5)


@pytest.mark.parametrize(("noise_schedule", "prediction_type"), PAIRS[1:])
def test_every_other_loss_is_the_plain_mean_squared_error(
    noise_schedule: NoiseSchedule, prediction_type: str
) -> None:
    objective = Objective(noise_schedule, prediction_type)
    timesteps = torch.tensor([10.0, 990.0])
    x0, noise = images(2)
    output = images(2, seed=1)[1]
    target = objective.target(x0, noise, timesteps)
    expected = torch.stack([(output[i] - target[i]).square().mean() for i in range(2)])
    torch.testing.assert_close(objective.loss(output, x0, noise, timesteps), expected)


def test_noise_prediction_at_the_noisy_end_of_the_flow_stays_finite() -> None:
    objective = Objective(FlowMatchingSchedule(), "epsilon")
    x0, noise = images(2)
    timesteps = torch.tensor([1000.0, 999.9])
    x_t = objective.add_noise(x0, noise, timesteps)
    guess = objective.to_x0(noise + 0.01, x_t, timesteps)
    assert guess.abs().max() < 0.5


@pytest.mark.parametrize(("noise_schedule", "prediction_type"), PAIRS)
def test_half_precision_and_autocast_do_not_reach_the_mathematics(
    noise_schedule: NoiseSchedule, prediction_type: str
) -> None:
    objective = Objective(noise_schedule, prediction_type)
    timesteps = torch.tensor([10.0, 700.0])
    output = images(2, seed=1)[1].bfloat16()
    x0, noise = (part.bfloat16() for part in images(2))

    def everything(output: Tensor, x0: Tensor, noise: Tensor) -> list[Tensor]:
        x_t = objective.add_noise(x0, noise, timesteps)
        target = objective.target(x0, noise, timesteps)
        loss = objective.loss(output, x0, noise, timesteps)
        return [x_t, target, objective.to_x0(output, x_t, timesteps), loss]

    in_float32 = everything(output.float(), x0.float(), noise.float())
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = everything(output, x0, noise)
    for a, b in zip(in_float32, under_autocast, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("noise_schedule", "prediction_type"),
    [
        (FlowMatchingSchedule(), "v_prediction"),
        (VPSchedule(), "velocity"),
        (FlowMatchingSchedule(), "eps"),
    ],
)
def test_an_impossible_prediction_is_refused_by_name(
    noise_schedule: NoiseSchedule, prediction_type: str
) -> None:
    with pytest.raises(LimnerError, match=prediction_type):
        Objective(noise_schedule, prediction_type)


def test_impossible_schedules_are_refused() -> None:
    with pytest.raises(LimnerError, match="cosine"):
        VPSchedule(beta_schedule="cosine")
    with pytest.raises(LimnerError, match="num_inference_steps is 0"):
        FlowMatchingSchedule().inference_timesteps(0)
    with pytest.raises(LimnerError, match="num_inference_steps is 1001"):
        VPSchedule().inference_timesteps(1001)
    with pytest.raises(LimnerError, match="cannot be shifted"):
        VPSchedule().inference_timesteps(10, shift=3.0)
    with pytest.raises(LimnerError, match="above 0"):
        FlowMatchingSchedule().inference_timesteps(10, shift=0.0)
