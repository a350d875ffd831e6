"""Learned projection from a frozen text encoder to the width of the denoiser."""

from __future__ import annotations

from torch import nn

from limner.models.layers import RMSNorm
from limner.text.batch import TextEmbeddings
from limner.text.conditioning import TextConditioning


class TextAdapter(nn.Module):
    """Projects frozen encoder states: TextEmbeddings -> TextConditioning of the model's text width.

    Each state is normalised first, because in language models the norms of some tokens are hundreds
    of times those of others (Sun et al. 2024, "Massive activations", arXiv 2402.17762).
    """

    def __init__(self, states_width: int, width: int) -> None:
        super().__init__()
        self.norm_states = RMSNorm(states_width)
        self.states = nn.Linear(states_width, width)
        self.norm_vector = RMSNorm(states_width)
        self.vector = nn.Linear(states_width, width)

    def forward(self, text: TextEmbeddings) -> TextConditioning:
        dtype = self.states.weight.dtype
        tokens = self.states(self.norm_states(text.states.to(dtype)))
        vector = self.vector(self.norm_vector(text.vector.to(dtype)))
        return TextConditioning(tokens, text.mask, vector)
