"""Batches of text inputs: token ids, or precomputed text embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from limner.text.batch import TextEmbeddings


class Words(Protocol):
    """A source of text inputs: a tokenizer, a pretrained encoder, or stored embeddings."""

    def encode(self, captions: Sequence[str]) -> Tensor | TextEmbeddings:
        """B captions as the model takes them: ids [B, L], or TextEmbeddings."""
        ...


def stack(texts: Sequence[Tensor] | Sequence[TextEmbeddings]) -> Tensor | TextEmbeddings:
    """Stack single captions of the same padded length into a batch."""
    if isinstance(texts[0], TextEmbeddings):
        return TextEmbeddings(*(torch.stack(parts) for parts in zip(*texts, strict=True)))
    return torch.stack(list(texts))  # type: ignore[arg-type]


def some(texts: Tensor | TextEmbeddings, which: slice | list[int]) -> Tensor | TextEmbeddings:
    """Some captions of a batch."""
    if isinstance(texts, TextEmbeddings):
        return TextEmbeddings(*(part[which] for part in texts))
    return texts[which]
