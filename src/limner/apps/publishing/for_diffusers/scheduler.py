"""The noise schedule and the solvers, as a diffusers scheduler."""

from __future__ import annotations

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from limner.diffusion.noise_schedule import FlowMatchingSchedule, NoiseSchedule, VPSchedule
from limner.diffusion.solvers import SOLVERS, Callback, Denoiser, Noise


class LimnerScheduler(SchedulerMixin, ConfigMixin):
    """Limner's solvers, which call the denoiser themselves, as often as they need.

    The configuration is compatible with diffusers schedulers, so they can be swapped in with
    `pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)`:
    FlowMatchEulerDiscreteScheduler and those with `use_flow_sigmas` for flow matching, DDIM, DDPM,
    and others for the diffusion objective.

    Args:
        objective: "flow_matching", or "diffusion" with a beta schedule.
        num_train_timesteps: the timestep of pure noise (flow matching), or the number of betas.
        solver: "ddpm", "ddim", "euler", "heun", "dpmsolver++", or "unipc".
        shift: above 1, more steps at high noise; flow matching only, like the next two.
        timestep_power: above 1, more steps at both ends, near the noise and near the image.
        zero_init_steps: number of initial steps to skip, which cost nothing (CFG-Zero*).
        beta_start, beta_end, beta_schedule: for the diffusion objective.
        prediction_type, use_flow_sigmas, flow_shift, timestep_spacing, clip_sample,
            set_alpha_to_one: settings for diffusers schedulers.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        objective: str = "flow_matching",
        num_train_timesteps: int = 1000,
        solver: str = "dpmsolver++",
        shift: float = 1.0,
        timestep_power: float = 1.0,
        zero_init_steps: int = 0,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        prediction_type: str = "flow_prediction",
        use_flow_sigmas: bool = True,
        flow_shift: float = 1.0,
        timestep_spacing: str = "trailing",
        clip_sample: bool = False,
        set_alpha_to_one: bool = True,
    ) -> None:
        if solver not in SOLVERS:
            raise ValueError(f"unknown solver {solver!r}; use one of {', '.join(SOLVERS)}")
        self.noise_schedule: NoiseSchedule = FlowMatchingSchedule(num_train_timesteps)
        if objective == "diffusion":
            self.noise_schedule = VPSchedule(
                num_train_timesteps, beta_start, beta_end, beta_schedule
            )

    def inference_timesteps(self, num_inference_steps: int) -> Tensor:
        """The times of a solver's steps and of the end, float64 [n + 1], descending."""
        settings = self.config
        times = self.noise_schedule.inference_timesteps(
            num_inference_steps, settings.shift, settings.timestep_power
        )
        return times[settings.zero_init_steps :]

    def solve(
        self,
        denoise: Denoiser,
        noise: Noise,
        num_inference_steps: int,
        start: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Denoise from pure noise to an image.

        Args:
            denoise: maps (x [B, C, H, W], timestep) to an estimate of the clean image.
            noise: maps i to Gaussian noise, float32 [B, C, H, W]; noise(-1) is the initial noise.
            start: initial noise, instead of noise(-1).
            callback: called with (i, current estimate of the clean image) at each step.

        Returns:
            float32 [B, C, H, W].
        """
        self.timesteps = self.inference_timesteps(num_inference_steps)
        x = noise(-1) if start is None else start
        solver = SOLVERS[self.config.solver]
        return solver(denoise, x, self.timesteps, self.noise_schedule, noise, callback)
