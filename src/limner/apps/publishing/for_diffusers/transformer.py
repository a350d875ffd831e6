"""The denoiser, as a diffusers model."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from limner.models.dit import DiT
from limner.models.modern import ModernDiT
from limner.models.text_adapter import TextAdapter
from limner.text.batch import TextEmbeddings
from limner.text.conditioning import TextConditioning


class LimnerTransformer(ModelMixin, ConfigMixin):
    """A text-conditioned denoising transformer.

    Parameter names are those of the checkpoint: `denoiser.*`, and `text_encoder.*` for the adapter
    to a pretrained text encoder.

    Args:
        in_channels: 3 for pixels, or the channels of the latents.
        text_width: width of the text conditioning.
        states_width: width of a pretrained text encoder; None: the text encoder was trained with
            the model.
        sample_size: training size, in pixels or latents.
        downsampling: pixels per latent in each direction.
        objective, prediction_type: the training objective; the pipeline converts predictions for
            the scheduler.
        flow_map: whether this is a distilled model, which is given the length of each step, too.
        guidance_embeds: whether it is given the guidance scale, too.
        latents_mean, latents_scale: the model denoises (latents - mean) * scale; one number for all
            channels or one for each.
    """

    Denoiser: ClassVar[Any]
    """`DiT` or `ModernDiT`; set by the subclass, since an exported file contains only one."""
    # Norms always compute in float32.
    _keep_in_fp32_modules: ClassVar[list[str]] = ["norm_q", "norm_k", "norm_states", "norm_vector"]

    @register_to_config
    def __init__(
        self,
        in_channels: int,
        patch_size: int,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        mlp_ratio: float,
        text_width: int,
        states_width: int | None = None,
        sample_size: int = 64,
        downsampling: int = 1,
        objective: str = "flow_matching",
        prediction_type: str = "velocity",
        flow_map: bool = False,
        guidance_embeds: bool = False,
        latents_mean: list[float] | None = None,
        latents_scale: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.text_encoder = TextAdapter(states_width, text_width) if states_width else None
        self.denoiser = self.Denoiser(
            in_channels=in_channels,
            patch_size=patch_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            dropout=0.0,
            text_width=text_width,
            flow_map=flow_map,
            guidance_embeds=guidance_embeds,
        )

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | TextConditioning,
        encoder_attention_mask: Tensor | None = None,
        pooled_projections: Tensor | None = None,
        return_dict: bool = True,
        span: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict the model output for one timestep.

        Args:
            hidden_states: noisy images or latents [B, C, H, W].
            timestep: [B], 0 (clean) to the scheduler's `num_train_timesteps` (noise).
            encoder_hidden_states: states of the text encoder [B, L, D], or the result of `read`.
            encoder_attention_mask, pooled_projections: as for `read`; unused with its result.
            span: of a distilled model, the length of the step, [B].
            guidance: of a distilled model with `guidance_embeds`, the guidance scale, [B].

        Returns:
            [B, C, H, W], as `sample` or in a tuple.
        """
        text = encoder_hidden_states
        if isinstance(text, Tensor):
            assert encoder_attention_mask is not None, "encoder_attention_mask is required"
            text = self.read(text, encoder_attention_mask, pooled_projections)
        with self._precision(hidden_states.device):
            output = self.denoiser(hidden_states, timestep, text, span, guidance)
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    @apply_forward_hook
    def read(
        self,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        pooled_projections: Tensor | None = None,
    ) -> TextConditioning:
        """Compute everything that depends only on the text, once for all steps.

        Args:
            encoder_hidden_states: states of the text encoder [B, L, D].
            encoder_attention_mask: [B, L], false or 0 at padding.
            pooled_projections: pooled output of a pretrained text encoder, [B, D].
        """
        text = TextConditioning(
            encoder_hidden_states, encoder_attention_mask.bool(), pooled_projections
        )
        with self._precision(encoder_hidden_states.device):
            if self.text_encoder is not None:
                assert text.vector is not None, "pooled_projections is required"
                text = self.text_encoder(TextEmbeddings(text.tokens, text.mask, text.vector))
            return self.denoiser.prepare(text)

    def _precision(self, device: torch.device) -> torch.autocast:
        """Autocast for half-precision weights; the residual stream stays in float32."""
        half = self.dtype != torch.float32
        return torch.autocast(device.type, self.dtype if half else torch.bfloat16, enabled=half)


class LimnerModernTransformer(LimnerTransformer):
    """The architecture `modern`."""

    Denoiser = ModernDiT


class LimnerDiTTransformer(LimnerTransformer):
    """The architecture `dit`."""

    Denoiser = DiT
