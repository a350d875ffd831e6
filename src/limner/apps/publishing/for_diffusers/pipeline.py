"""A diffusers pipeline that generates the same images as `limner generate`, without Limner."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from limner.data.images import to_pil
from limner.diffusion.flow_map import flow_map_denoiser
from limner.diffusion.guidance import guided_denoiser
from limner.diffusion.noise_schedule import FlowMatchingSchedule, NoiseSchedule, VPSchedule
from limner.diffusion.objective import Objective
from limner.pretrained.text_encoder import read_captions
from limner.text.batch import TextEmbeddings
from limner.text.conditioning import TextConditioning
from limner.text.tokenizer import encodable


class LimnerPipeline(DiffusionPipeline):
    """Pipeline for text-to-image generation with a model trained by Limner.

    Args:
        transformer: the denoiser.
        text_encoder, tokenizer: trained with the denoiser, or pretrained from transformers.
        scheduler: LimnerScheduler, or a diffusers scheduler created from its configuration.
        vae: the autoencoder of a latent model; None: the model works in pixel space.
        max_length: maximum number of prompt tokens.
        text_summary: pooling of a pretrained text encoder ("pooler", "last", "mean"); None: the
            text encoder was trained with the model.
        num_inference_steps, guidance_scale, guidance_type, guidance_rescale: defaults for
            `__call__`.
        guidance_start, guidance_end: default of `guidance_interval`.
        apg_eta, apg_threshold, apg_momentum: parameters of the guidance type "apg".
        guidance_low, guidance_high: range of guidance scales of a distilled model that takes them;
            None: it takes none, or is not distilled.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components: ClassVar[list[str]] = ["vae"]

    # Without annotations: diffusers 0.35 expects classes, but postponed annotations are strings, so
    # it could not load the folder.
    def __init__(  # type: ignore[no-untyped-def]
        self,
        transformer,
        text_encoder,
        tokenizer,
        scheduler,
        vae,
        max_length=32,
        text_summary=None,
        num_inference_steps=20,
        guidance_scale=3.0,
        guidance_start=0.0,
        guidance_end=1.0,
        guidance_type="cfg",
        guidance_rescale=0.0,
        apg_eta=0.0,
        apg_threshold=0.0,
        apg_momentum=-0.5,
        guidance_low=None,
        guidance_high=None,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            scheduler=scheduler,
            vae=vae,
        )
        self.register_to_config(
            max_length=max_length,
            text_summary=text_summary,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_start=guidance_start,
            guidance_end=guidance_end,
            guidance_type=guidance_type,
            guidance_rescale=guidance_rescale,
            apg_eta=apg_eta,
            apg_threshold=apg_threshold,
            apg_momentum=apg_momentum,
            guidance_low=guidance_low,
            guidance_high=guidance_high,
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., Any] | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_type: str | None = None,
        guidance_rescale: float | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate images. Arguments that are None default to the model's configuration.

        Args:
            prompt: the prompt or prompts.
            height, width: in pixels; None: the training size.
            num_inference_steps: number of denoising steps.
            guidance_scale: 1: no guidance; 2 to 5 follow the prompt more closely.
            negative_prompt: the prompt or prompts to guide away from; None: the empty prompt.
            num_images_per_prompt: number of images per prompt.
            generator: `torch.Generator().manual_seed(42)` gives the same image as `--seed 42` in
                Limner; a list has one generator per image.
            latents: initial noise [B, C, h, w], instead of sampling it from the generator.
            output_type: "pil", "pt" ([B, 3, H, W] in [0, 1]), "np" ([B, H, W, 3]), or "latent".
            callback_on_step_end: called with (pipeline, step, timestep, {"latents": the current
                estimate of the clean image}); it must return None or that dictionary unchanged.
            guidance_interval: noise levels between which guidance is applied, such as (0.1, 0.9).
            guidance_type: "cfg", "cfg_zero_star", or "apg".
            guidance_rescale: how far to rescale the contrast to that of an unguided image.

        Returns:
            The images, as `images` or in a tuple.

        Raises:
            ValueError: an argument is invalid, or the arguments are inconsistent.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negative = negative_prompt or ""
        negatives = [negative] if isinstance(negative, str) else list(negative)
        count = len(prompts) * num_images_per_prompt
        if not count:
            raise ValueError("prompt is empty, or num_images_per_prompt is 0")
        if len(negatives) not in (1, len(prompts)):
            raise ValueError(
                "negative_prompt must be one prompt or one per prompt; got "
                f"{len(negatives)} for {len(prompts)}"
            )
        if isinstance(generator, list) and len(generator) not in (1, count):
            raise ValueError(
                f"generator must have one entry per image; got {len(generator)} for {count}"
            )
        if output_type not in ("pil", "pt", "np", "latent"):
            raise ValueError(f"unknown output_type {output_type!r}; use pil, pt, np, or latent")
        prompts = [p for p in prompts for _ in range(num_images_per_prompt)]
        if len(negatives) > 1:
            negatives = [p for p in negatives for _ in range(num_images_per_prompt)]
        steps = self.config.num_inference_steps
        steps = steps if num_inference_steps is None else num_inference_steps
        skipped = self.scheduler.config.get("zero_init_steps", 0)
        if steps <= skipped:
            raise ValueError(
                f"num_inference_steps must be greater than {skipped} (zero_init_steps); got {steps}"
            )
        shape = (count, *self._shape(height, width))
        if latents is not None and latents.shape != shape:
            raise ValueError(f"expected latents of shape {shape}; got {tuple(latents.shape)}")
        device = self._execution_device

        encoded = self.encode_prompt([*prompts, *negatives])
        text, null = encoded.rows(slice(None, count)), encoded.rows(slice(count, None))
        guidance = self._guidance(
            guidance_scale, guidance_interval, guidance_type, guidance_rescale
        )
        if self.transformer.config.flow_map:
            scale = self._known_scale(guidance, any(negatives))
            if not hasattr(self.scheduler, "solve") or self.scheduler.config.solver not in (
                "ddim",
                "euler",
            ):
                raise ValueError("a distilled model draws with LimnerScheduler and solver ddim")
            times = self.scheduler.inference_timesteps(steps)
            denoise = flow_map_denoiser(
                self._network, self._objective, text, times, torch.float32, scale
            )
        else:
            denoise = guided_denoiser(
                self._network, self._objective, text, null, guidance, torch.float32
            )

        def noise(_: int) -> Tensor:
            return randn_tensor(shape, generator, device, torch.float32)

        start = noise(-1) if latents is None else latents.to(device, torch.float32)
        with self.progress_bar(total=steps - skipped) as bar:

            def told(i: int, x0: Tensor) -> None:
                bar.update()
                if callback_on_step_end is not None:
                    timestep = float(self.scheduler.timesteps[i])
                    said = callback_on_step_end(self, i, timestep, {"latents": x0}) or {}
                    if said.get("latents", x0) is not x0:
                        raise ValueError("callback_on_step_end must not replace the latents")

            if hasattr(self.scheduler, "solve"):
                drawn = self.scheduler.solve(denoise, noise, steps, start, told)
            else:
                drawn = self._step_by_step(denoise, start, steps, generator, told)
        images = self._finished(drawn, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def encode_prompt(self, prompts: list[str]) -> TextConditioning:
        """Encode B prompts for the transformer, including what it computes once for all steps."""
        device = self._execution_device
        if self.config.text_summary is None:
            ids = self.tokenizer(
                [encodable(p) for p in prompts],
                padding="max_length",
                truncation=True,
                max_length=self.config.max_length,
                return_tensors="pt",
            ).input_ids
            return self.transformer.read(*self.text_encoder(ids.to(device)))
        rows = read_captions(
            self.text_encoder,
            self.tokenizer,
            prompts,
            self.config.max_length,
            self.config.text_summary,
        )
        longest = max(len(states) for states, _ in rows)
        return self.transformer.read(*TextEmbeddings.stack(rows, longest).to(device))

    def _network(
        self,
        x: Tensor,
        t: Tensor,
        y: TextConditioning,
        span: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        return self.transformer(x, t, y, return_dict=False, span=span, guidance=guidance)[0]

    def _known_scale(self, guidance: Any, negative: bool) -> float | None:
        """Of a distilled model: the guidance scale that it is told; None: it is told none.

        Raises:
            ValueError: it does not know such guidance.
        """
        low, high = self.config.guidance_low, self.config.guidance_high
        if low is None or high is None:
            if guidance.guidance_scale != 1 or negative:
                raise ValueError(
                    "the guidance of a distilled model was fixed when it was made: leave "
                    "guidance_scale at 1, and negative_prompt away"
                )
            return None
        others = guidance.guidance_interval, guidance.guidance_type, guidance.guidance_rescale
        if negative or others != ((0, 1), "cfg", 0):
            raise ValueError(
                "of the guidance of this distilled model only the scale is a setting: leave "
                "negative_prompt, guidance_interval, guidance_type, and guidance_rescale away"
            )
        if not low <= guidance.guidance_scale <= high:
            raise ValueError(
                f"this model was distilled for guidance_scale from {low:g} to {high:g}; got "
                f"{guidance.guidance_scale}"
            )
        return float(guidance.guidance_scale)

    def _guidance(
        self,
        scale: float | None,
        interval: Sequence[float] | None,
        kind: str | None,
        rescale: float | None,
    ) -> Any:
        """Guidance settings; None defaults to the configuration."""
        own = self.config
        low, high = (own.guidance_start, own.guidance_end) if interval is None else interval
        settings = SimpleNamespace(
            guidance_scale=own.guidance_scale if scale is None else scale,
            guidance_interval=(low, high),
            guidance_type=own.guidance_type if kind is None else kind,
            guidance_rescale=own.guidance_rescale if rescale is None else rescale,
            apg_eta=own.apg_eta,
            apg_threshold=own.apg_threshold,
            apg_momentum=own.apg_momentum,
        )
        is_flow = isinstance(self._objective.noise_schedule, FlowMatchingSchedule)
        known = ("cfg", "cfg_zero_star", "apg") if is_flow else ("cfg", "apg")
        if settings.guidance_type not in known:
            raise ValueError(
                f"unknown guidance_type {settings.guidance_type!r}; use {', '.join(known)}"
            )
        if not settings.guidance_scale >= 0:
            raise ValueError(f"guidance_scale must be at least 0; got {settings.guidance_scale}")
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"guidance_interval must be increasing and within [0, 1]; got ({low}, {high})"
            )
        if not 0 <= settings.guidance_rescale <= 1:
            raise ValueError(
                f"guidance_rescale must be between 0 and 1; got {settings.guidance_rescale}"
            )
        return settings

    @property
    def _objective(self) -> Objective:
        network, schedule = self.transformer.config, self.scheduler.config
        noise_schedule: NoiseSchedule = FlowMatchingSchedule(schedule.num_train_timesteps)
        if network.objective == "diffusion":
            noise_schedule = VPSchedule(
                schedule.num_train_timesteps,
                schedule.beta_start,
                schedule.beta_end,
                schedule.beta_schedule,
            )
        return Objective(noise_schedule, network.prediction_type)

    def _step_by_step(
        self,
        denoise: Callable[[Tensor, float], Tensor],
        x: Tensor,
        steps: int,
        generator: Any,
        told: Callable[[int, Tensor], None],
    ) -> Tensor:
        """Sample with a diffusers scheduler, converting predictions to its prediction type."""
        noise_schedule, scheduler = self._objective.noise_schedule, self.scheduler
        is_flow = isinstance(noise_schedule, FlowMatchingSchedule)
        if is_flow and "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
            # As in Limner, before the scheduler applies its shift; its own timesteps would end one
            # training step before the clean image.
            settings = scheduler.config
            times = noise_schedule.inference_timesteps(
                steps, power=settings.get("timestep_power", 1.0)
            )
            times = (
                times[settings.get("zero_init_steps", 0) : -1] / noise_schedule.num_train_timesteps
            )
            scheduler.set_timesteps(sigmas=times.numpy(), device=x.device)
        else:
            scheduler.set_timesteps(steps, device=x.device)
        draws = "generator" in inspect.signature(scheduler.step).parameters
        options = {"generator": generator} if draws else {}
        wanted = "velocity" if is_flow else scheduler.config.prediction_type
        x = x * getattr(scheduler, "init_noise_sigma", 1.0)
        for i, t in enumerate(scheduler.timesteps):
            seen = scheduler.scale_model_input(x, t) if not is_flow else x
            # At exactly 0 the velocity of a flow is undefined.
            timestep = max(float(t), 0.1) if is_flow else float(t)
            x0 = denoise(seen, timestep)
            at = torch.tensor(timestep, dtype=torch.float64)
            output = _prediction(
                wanted, seen, x0, noise_schedule.alpha(at).item(), noise_schedule.sigma(at).item()
            )
            x = scheduler.step(output, t, x, **options, return_dict=False)[0]
            told(i, x0)
        return x

    def _shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """The shape of the latents: channels, height, width."""
        network = self.transformer.config
        factor = network.downsampling
        sides = []
        for name, side in (("height", height), ("width", width)):
            side = network.sample_size * factor if side is None else side
            whole = network.patch_size * factor
            if side < whole or side % whole:
                raise ValueError(f"{name} must be a multiple of {whole}; got {side}")
            sides.append(side // factor)
        return network.in_channels, sides[0], sides[1]

    def _finished(self, drawn: Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return drawn
        images = self._decode(drawn)
        if output_type == "pil":
            return to_pil(images)
        images = (images.float().clamp(-1, 1) + 1) / 2
        return images if output_type == "pt" else images.movedim(1, -1).cpu().numpy()

    def _decode(self, latents: Tensor) -> Tensor:
        if self.vae is None:
            return latents
        network = self.transformer.config
        mean, scale = (
            torch.tensor(values, device=latents.device).reshape(1, -1, 1, 1)
            for values in (network.latents_mean, network.latents_scale)
        )
        return self.vae.decode((latents / scale + mean).to(self.vae.dtype)).sample.float()


def _prediction(kind: str, x: Tensor, x0: Tensor, alpha: float, sigma: float) -> Tensor:
    """Convert x0 to the given prediction type, for a noisy x."""
    if kind == "sample":
        return x0
    if kind == "velocity":
        return (x - x0) / sigma
    if kind == "v_prediction":
        return (alpha * x - x0) / sigma
    return (x - alpha * x0) / sigma
