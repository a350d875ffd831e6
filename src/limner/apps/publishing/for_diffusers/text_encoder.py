"""The text encoder trained with the model, as a diffusers model."""

from __future__ import annotations

from typing import ClassVar

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from limner.models.text_encoder import TextEncoder


class LimnerTextEncoder(ModelMixin, ConfigMixin):
    """A small bidirectional transformer over the tokens of a prompt.

    Parameter names are those of the checkpoint: `text_encoder.*`.
    """

    _keep_in_fp32_modules: ClassVar[list[str]] = ["text_encoder"]

    @register_to_config
    def __init__(self, vocab_size: int, max_length: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.text_encoder = TextEncoder(vocab_size, max_length, hidden_size, num_layers)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids [B, L] (padding = 0) -> states [B, L, D], and a mask [B, L], false at padding.

        Computed in float32, since it is small and runs once per prompt.
        """
        encoded = self.text_encoder(input_ids)
        return encoded.tokens, encoded.mask
