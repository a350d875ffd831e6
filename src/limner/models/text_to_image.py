"""The whole model: a text encoder and a denoiser, called as `model(x, t, y)`."""

from __future__ import annotations

from torch import Tensor, nn

from limner.config import Config
from limner.models.dit import DiT
from limner.models.modern import ModernDiT
from limner.models.size import check_memory
from limner.models.text_adapter import TextAdapter
from limner.models.text_encoder import TextEncoder
from limner.text.batch import TextEmbeddings
from limner.text.conditioning import TextConditioning

ARCHITECTURES: dict[str, type[ModernDiT] | type[DiT]] = {"modern": ModernDiT, "dit": DiT}


class TextToImage(nn.Module):
    """Text encoder and denoiser in one module, with one state dict and one forward pass."""

    def __init__(self, text_encoder: TextEncoder | TextAdapter, denoiser: ModernDiT | DiT) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.denoiser = denoiser

    @property
    def is_flow_map(self) -> bool:
        """Whether it is told the length of its steps (see `limner.diffusion.flow_map`)."""
        return self.denoiser.is_flow_map

    @property
    def takes_guidance(self) -> bool:
        """Whether it is a flow map that is told the guidance scale."""
        return self.denoiser.takes_guidance

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | TextEmbeddings | TextConditioning,
        span: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Predict from noisy pictures (see `scheduler.prediction_type`).

        Args:
            x: noisy pictures or latents [B, C, H, W], float.
            t: timesteps [B], 0 (clean) to 1000 (noise).
            y: text inputs: token ids [B, L] int64, the output of a pretrained encoder, or text that
                is already encoded (sampling encodes only once).
            span: of a flow map: the length of each step in timesteps [B]; None: 0.
            guidance: of a flow map that takes it: the guidance scale of each picture [B]; None: 1.

        Returns:
            [B, C, H, W]: the prediction (of the objective's prediction type), with the shape of x.
        """
        text = y if isinstance(y, TextConditioning) else self.text_encoder(y)
        return self.denoiser(x, t, text, span, guidance)


def build_model(config: Config, text_size: int) -> TextToImage:
    """Build the model of a complete configuration, newly initialised.

    Args:
        text_size: vocabulary size of the built-in text encoder, or width of a pretrained encoder.

    Raises:
        LimnerError: the weights do not fit into this machine's memory.
    """
    check_memory(config, text_size)
    model, text = config.model, config.text_encoder
    assert model.patch_size, "load_config resolves these"
    assert model.in_channels
    assert text.hidden_size
    denoiser = ARCHITECTURES[model.architecture](
        in_channels=model.in_channels,
        patch_size=model.patch_size,
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        mlp_ratio=model.mlp_ratio,
        dropout=model.dropout,
        text_width=text.hidden_size,
        flow_map=model.flow_map,
        guidance_embeds=config.distill.guidance_range is not None,
    )
    denoiser.gradient_checkpointing = config.training.gradient_checkpointing
    encoder: TextEncoder | TextAdapter
    if text.pretrained_model_name is not None:
        encoder = TextAdapter(text_size, text.hidden_size)
    else:
        assert text.max_length
        encoder = TextEncoder(text_size, text.max_length, text.hidden_size, text.num_layers)
    return TextToImage(encoder, denoiser)
