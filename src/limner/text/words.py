"""What turns captions into what the model reads: the built-in tokenizer or a pretrained encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from limner.text.batch import FrozenText


class Words(Protocol):
    """A tokenizer, a pretrained encoder, or what one has already computed and stored."""

    def encode(self, captions: Sequence[str]) -> Tensor | FrozenText:
        """B captions as the model takes them: ids [B, L], or a FrozenText of B."""
        ...


def stack(texts: Sequence[Tensor] | Sequence[FrozenText]) -> Tensor | FrozenText:
    """Single captions of one padded length to a batch of them."""
    if isinstance(texts[0], FrozenText):
        return FrozenText(*(torch.stack(parts) for parts in zip(*texts, strict=True)))
    return torch.stack(list(texts))  # type: ignore[arg-type]


def some(texts: Tensor | FrozenText, which: slice | list[int]) -> Tensor | FrozenText:
    """Some captions of a batch."""
    if isinstance(texts, FrozenText):
        return FrozenText(*(part[which] for part in texts))
    return texts[which]
