"""Precomputed text embeddings of a frozen pretrained encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class TextEmbeddings(NamedTuple):
    """Captions encoded by a pretrained encoder, of any float dtype."""

    states: Tensor
    """[B, L, D], one state per token, zero at padding."""
    mask: Tensor
    """[B, L] bool, False at padding."""
    vector: Tensor
    """[B, D], the encoder's own summary of each caption, or the mean of its states."""

    def to(self, device: torch.device, non_blocking: bool = False) -> TextEmbeddings:
        return TextEmbeddings(*(part.to(device, non_blocking=non_blocking) for part in self))

    def pin_memory(self) -> TextEmbeddings:
        return TextEmbeddings(*(part.pin_memory() for part in self))

    @classmethod
    def stack(cls, rows: Sequence[tuple[Tensor, Tensor]], length: int) -> TextEmbeddings:
        """Captions of different lengths, padded to one.

        Args:
            rows: for each caption its states [l, D], l at most `length`, and its vector [D].
        """
        states = torch.zeros(len(rows), length, rows[0][0].shape[-1], dtype=rows[0][0].dtype)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for i, (row, _) in enumerate(rows):
            states[i, : len(row)] = row
            mask[i, : len(row)] = True
        return cls(states, mask, torch.stack([vector for _, vector in rows]))
