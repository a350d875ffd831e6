"""A pipeline of diffusers that draws what `limner generate` draws, without Limner."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from limner.data.pictures import to_pil
from limner.diffusion.guidance import guided_denoiser
from limner.diffusion.objective import Objective
from limner.diffusion.path import DiffusionPath, FlowPath, Path
from limner.models.pretrained_text import read_captions
from limner.models.text_encoder import EncodedText
from limner.text.frozen import FrozenText
from limner.text.tokenizer import encodable


class LimnerPipeline(DiffusionPipeline):
    """Text to image with a model that Limner trained.

    Args:
        transformer: the denoiser.
        text_encoder, tokenizer: those trained along with it, or a pretrained pair of transformers.
        scheduler: LimnerScheduler, or one of diffusers' own made from its configuration.
        vae: the autoencoder in whose latents the denoiser works; None: in pixels.
        max_length: tokens read of a prompt.
        text_summary: what stands for a whole prompt read by a pretrained encoder ("pooler", "last",
            "mean"); None: the encoder was trained along.
        num_inference_steps, guidance_scale: used unless the call says otherwise.
        guidance_start, guidance_end: shares of the noise between which guidance acts.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components: ClassVar[list[str]] = ["vae"]

    def __init__(
        self,
        transformer: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: Any,
        vae: Any,
        max_length: int = 32,
        text_summary: str | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 3.0,
        guidance_start: float = 0.0,
        guidance_end: float = 1.0,
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
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., Any] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw.

        Args:
            prompt: one, or several for as many pictures.
            num_inference_steps: of the solver; None: as the model's configuration has it.
            guidance_scale: 1: none; 2 to 5 follow the prompt more closely. None: as configured.
            height, width: pixels; None: the size trained at.
            negative_prompt: what guidance leads away from; None: the empty prompt.
            num_images_per_prompt: pictures of each prompt.
            generator: `torch.Generator().manual_seed(42)` draws what `--seed 42` draws in Limner; a
                list has one for each picture.
            latents: noise to begin with, instead of the generator's.
            output_type: "pil", "pt" ([B, 3, H, W] in [0, 1]), "np" ([B, H, W, 3]), or "latent".
            callback_on_step_end: (pipeline, step, timestep, {"latents": the clean picture so far}).

        Returns:
            The pictures, as `images` or in a tuple.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negative = negative_prompt or ""
        negatives = [negative] if isinstance(negative, str) else list(negative)
        count = len(prompts) * num_images_per_prompt
        if len(negatives) not in (1, len(prompts)):
            raise ValueError(f"{len(prompts)} prompts, but {len(negatives)} negative ones")
        prompts = [p for p in prompts for _ in range(num_images_per_prompt)]
        if len(negatives) > 1:
            negatives = [p for p in negatives for _ in range(num_images_per_prompt)]
        steps, scale = num_inference_steps, guidance_scale
        steps = self.config.num_inference_steps if steps is None else steps
        scale = self.config.guidance_scale if scale is None else scale
        shape = (count, *self._shape(height, width))
        device = self._execution_device

        encoded = self.encode_prompt([*prompts, *negatives])
        denoise = guided_denoiser(
            self._network,
            self._objective,
            encoded.rows(slice(None, count)),
            encoded.rows(slice(count, None)),
            scale,
            (self.config.guidance_start, self.config.guidance_end),
            torch.float32,
        )

        def noise(_: int) -> Tensor:
            return randn_tensor(shape, generator, device, torch.float32)

        start = noise(-1) if latents is None else latents.to(device, torch.float32)
        with self.progress_bar(total=steps) as bar:

            def told(i: int, x0: Tensor) -> None:
                bar.update()
                if callback_on_step_end is not None:
                    timestep = float(self.scheduler.timesteps[i])
                    callback_on_step_end(self, i, timestep, {"latents": x0})

            if hasattr(self.scheduler, "solve"):
                drawn = self.scheduler.solve(denoise, noise, steps, start, told)
            else:
                drawn = self._step_by_step(denoise, start, steps, generator, told)
        images = self._finished(drawn, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def encode_prompt(self, prompts: list[str]) -> EncodedText:
        """Prompts as the transformer takes them: states [B, L, D], mask [B, L], vector [B, D]."""
        device = self._execution_device
        if self.config.text_summary is None:
            ids = self.tokenizer(
                [encodable(p) for p in prompts],
                padding="max_length",
                truncation=True,
                max_length=self.config.max_length,
                return_tensors="pt",
            ).input_ids
            return EncodedText(*self.text_encoder(ids.to(device)))
        rows = read_captions(
            self.text_encoder,
            self.tokenizer,
            prompts,
            self.config.max_length,
            self.config.text_summary,
        )
        return EncodedText(*FrozenText.stack(rows, max(len(r) for r, _ in rows)).to(device))

    def _network(self, x: Tensor, t: Tensor, y: EncodedText) -> Tensor:
        return self.transformer(x, t, y.tokens, y.mask, y.vector, return_dict=False)[0]

    @property
    def _objective(self) -> Objective:
        network, schedule = self.transformer.config, self.scheduler.config
        path: Path = FlowPath(schedule.num_train_timesteps)
        if network.objective == "diffusion":
            path = DiffusionPath(
                schedule.num_train_timesteps,
                schedule.beta_start,
                schedule.beta_end,
                schedule.beta_schedule,
            )
        return Objective(path, network.prediction_type)

    def _step_by_step(
        self,
        denoise: Callable[[Tensor, float], Tensor],
        x: Tensor,
        steps: int,
        generator: Any,
        told: Callable[[int, Tensor], None],
    ) -> Tensor:
        """With a scheduler of diffusers, which is given what its own prediction type asks for."""
        path, scheduler = self._objective.path, self.scheduler
        is_flow = isinstance(path, FlowPath)
        if is_flow and "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
            # As in Limner; by itself it would end one training step before the clean picture.
            sigmas = np.linspace(1, 0, steps + 1)[:-1]
            scheduler.set_timesteps(sigmas=sigmas, device=x.device)
        else:
            scheduler.set_timesteps(steps, device=x.device)
        draws = "generator" in inspect.signature(scheduler.step).parameters
        options = {"generator": generator} if draws else {}
        wanted = "velocity" if is_flow else scheduler.config.prediction_type
        x = x * getattr(scheduler, "init_noise_sigma", 1.0)
        for i, t in enumerate(scheduler.timesteps):
            seen = scheduler.scale_model_input(x, t) if not is_flow else x
            # At 0 itself a flow's velocity does not follow from the picture.
            timestep = max(float(t), 0.1) if is_flow else float(t)
            x0 = denoise(seen, timestep)
            at = torch.tensor(timestep, dtype=torch.float64)
            output = _prediction(wanted, seen, x0, path.alpha(at).item(), path.sigma(at).item())
            x = scheduler.step(output, t, x, **options, return_dict=False)[0]
            told(i, x0)
        return x

    def _shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """Of what is denoised: channels, height, width."""
        network = self.transformer.config
        factor = network.downsampling
        sides = []
        for name, side in (("height", height), ("width", width)):
            side = network.sample_size * factor if side is None else side
            whole = network.patch_size * factor
            if side < whole or side % whole:
                raise ValueError(f"{name} {side} is not a multiple of {whole}")
            sides.append(side // factor)
        return network.in_channels, sides[0], sides[1]

    def _finished(self, drawn: Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return drawn
        pictures = self._decode(drawn)
        if output_type == "pil":
            return to_pil(pictures)
        pictures = (pictures.float().clamp(-1, 1) + 1) / 2
        return pictures if output_type == "pt" else pictures.movedim(1, -1).cpu().numpy()

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
    """What a network of that kind would have put out if it saw x and meant x0."""
    if kind == "sample":
        return x0
    if kind == "velocity":
        return (x - x0) / sigma
    if kind == "v_prediction":
        return (alpha * x - x0) / sigma
    return (x - alpha * x0) / sigma
