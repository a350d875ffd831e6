"""The training objective: prediction types and the loss."""

from dataclasses import dataclass

from torch import Tensor

from limner.config import Config
from limner.diffusion.noise_schedule import FlowMatchingSchedule, NoiseSchedule, VPSchedule
from limner.errors import LimnerError

# Near the clean end of the flow path a velocity that follows from a predicted picture is divided by
# almost nothing; JiT stops the divisor here (Li & He 2025, arXiv 2511.13720). A picture
# that follows from predicted noise has the same trouble at the noisy end.
MIN_DIVISOR = 0.05


@dataclass(frozen=True)
class Objective:
    """A training objective: a noise schedule and a prediction type.

    Pictures, noise and outputs are [B, C, H, W]; timesteps are [B]. All is computed in float32,
    also under autocast: the terms of a prediction nearly cancel where there is little noise.

    Attributes:
        noise_schedule: adds noise to pictures.
        prediction_type: "sample" (x_0), "epsilon" (the noise; Ho et al. 2020),
            "v_prediction" (alpha * noise - sigma * x_0; Salimans & Ho 2022, arXiv 2202.00512;
            diffusion path only) or "velocity" (noise - x_0 = dx_t/ds; flow path only).

    Raises:
        LimnerError: `prediction_type` is unknown, or not supported by this noise schedule.
    """

    noise_schedule: NoiseSchedule
    prediction_type: str

    def __post_init__(self) -> None:
        is_flow = isinstance(self.noise_schedule, FlowMatchingSchedule)
        allowed = ("sample", "epsilon", "velocity" if is_flow else "v_prediction")
        if self.prediction_type not in allowed:
            raise LimnerError(
                f"scheduler.prediction_type is {self.prediction_type!r}, which "
                f"{'flow matching' if is_flow else 'diffusion'} does not support; use one of "
                f"{', '.join(allowed)}."
            )

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = alpha * x_0 + sigma * noise, float32 [B, C, H, W]."""
        alpha, sigma = self._alpha_sigma(timesteps)
        return alpha * x0.float() + sigma * noise.float()

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The training target of the network, float32 [B, C, H, W]."""
        x0, noise = x0.float(), noise.float()
        if self.prediction_type == "sample":
            return x0
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "velocity":
            return noise - x0
        alpha, sigma = self._alpha_sigma(timesteps)
        return alpha * noise - sigma * x0

    def to_x0(self, output: Tensor, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """The clean picture x_0 implied by the network's output, float32 [B, C, H, W].

        Always affine in `output`. "epsilon" on the flow path cannot say anything about the picture
        where there is none (alpha = 0), so there the divisor stops at `MIN_DIVISOR`, which draws
        the answer towards the mean picture, 0.
        """
        output, x_t = output.float(), x_t.float()
        alpha, sigma = self._alpha_sigma(timesteps)
        if self.prediction_type == "sample":
            return output
        if self.prediction_type == "velocity":
            return x_t - sigma * output
        if self.prediction_type == "v_prediction":
            return alpha * x_t - sigma * output
        if isinstance(self.noise_schedule, FlowMatchingSchedule):
            alpha = alpha.clamp(min=MIN_DIVISOR)
        return (x_t - sigma * output) / alpha

    def loss(self, output: Tensor, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Mean squared error of each picture, float32 [B].

        In flow matching with sample prediction, the loss is that of the implied velocity
        v = (x_t - x_0) / sigma: the error is divided by sigma^2 (JiT, Li & He 2025).
        """
        error = (output.float() - self.target(x0, noise, timesteps)).square().mean(dim=(1, 2, 3))
        if (
            isinstance(self.noise_schedule, FlowMatchingSchedule)
            and self.prediction_type == "sample"
        ):
            return (
                error / self.noise_schedule.sigma(timesteps).float().clamp(min=MIN_DIVISOR).square()
            )
        return error

    def _alpha_sigma(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, 1, 1, 1)
        alpha = self.noise_schedule.alpha(timesteps).float().reshape(shape)
        return alpha, self.noise_schedule.sigma(timesteps).float().reshape(shape)


def build_objective(config: Config) -> Objective:
    """The objective that a (resolved) configuration's scheduler section describes."""
    s = config.scheduler
    assert s.prediction_type is not None, "load_config resolves it"
    noise_schedule: NoiseSchedule
    if s.objective == "flow_matching":
        assert s.logit_mean is not None
        noise_schedule = FlowMatchingSchedule(
            s.num_train_timesteps, s.logit_mean, s.logit_std, s.uniform_share, s.logit_mean_end
        )
    else:
        assert s.beta_start
        assert s.beta_end
        assert s.beta_schedule
        noise_schedule = VPSchedule(
            s.num_train_timesteps, s.beta_start, s.beta_end, s.beta_schedule
        )
    return Objective(noise_schedule, s.prediction_type)
