"""Where a model looks at each word of a prompt while it draws.

Picture tokens attend to [text ; picture] in one softmax. The weights that they give to a word,
averaged over heads, blocks, and the steps of the solver, are a map of the word (as DAAM does it for
cross-attention, Tang et al. 2022, arXiv 2210.04885). A map says where a word is read, which is
often, but not always, where its meaning is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from limner.models.modern import ModernBlock, ModernDiT, rotate
from limner.models.text_to_image import TextToImage
from limner.pretrained.text_encoder import PretrainedTextEncoder
from limner.text.tokenizer import CaptionTokenizer, encodable

Word = tuple[str, tuple[int, ...]]
"""A word of a prompt, and the positions of its tokens."""
HAS_NO_SPACES = "\u2e80"
"""The first of the scripts that are written without spaces; their tokens stay apart."""


class WordAttention:
    """The sum of what was recorded, of the first picture of each batch.

    Attributes:
        total: [L, N], weights of L text tokens at N picture tokens; None before the first step.
        count: of the weights that were added.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = 0

    def add(self, weights: Tensor) -> None:
        self.total = weights if self.total is None else self.total + weights
        self.count += 1

    def of_words(self, words: list[Word], height: int, width: int) -> Tensor:
        """Maps of the words, float32 [len(words), height, width] in picture tokens: the weight of
        a word is the sum of those of its tokens."""
        assert self.total is not None
        mean = self.total / self.count
        maps = [mean[list(positions)].sum(dim=0) for _, positions in words]
        return torch.stack(maps).reshape(len(words), height, width)


@contextmanager
def recorded(model: TextToImage) -> Iterator[WordAttention | None]:
    """Record the attention of everything that is drawn meanwhile. None: this architecture reads the
    whole prompt as one vector, and attends to no word.

    Sampling gives the same pictures, a little more slowly. The model must not be compiled.
    """
    if not isinstance(model.denoiser, ModernDiT):
        yield None
        return
    found = WordAttention()

    def before(block: Any, inputs: tuple[Tensor, ...]) -> None:
        found.add(weights_of_text(block, *inputs)[0])

    hooks = [block.register_forward_pre_hook(before) for block in model.denoiser.blocks]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def weights_of_text(
    block: ModernBlock, x: Tensor, modulation: Tensor, text: Tensor, mask: Tensor, rotation: Tensor
) -> Tensor:
    """What picture tokens give to text tokens in this block, mean over heads, float32 [B, L, N].

    Args: those of `ModernBlock.forward`.
    """
    shift, scale = (modulation + block.modulation)[:, :2, None].unbind(1)
    q, k, _ = block.qkv(block.norm_attention(x) * (1 + scale) + shift).chunk(3, dim=-1)
    text_k, _ = block.read(text) if text.dim() == 3 else text.unbind(1)
    q = rotate(block.norm_q(block.heads(q)), rotation).float()
    k = rotate(block.norm_k(block.heads(k)), rotation)
    k = torch.cat([text_k.to(k.dtype), k], dim=2).float()
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    allowed = mask.dtype == torch.bool
    scores = scores.masked_fill(~mask, -math.inf) if allowed else scores + mask
    weights = scores.softmax(dim=-1)[..., : text_k.shape[2]]
    return weights.mean(dim=1).transpose(1, 2)


def words_of(prompt: str, words: CaptionTokenizer | PretrainedTextEncoder) -> list[Word]:
    """The words of a prompt that the model reads, in order.

    Tokens between two spaces are one word; of scripts without spaces each token is one.
    """
    text = encodable(prompt)
    if isinstance(words, CaptionTokenizer):
        places = enumerate(words.tokenizer.encode(text).offsets, start=1)  # 0 is <start>
    else:
        tokenizer = words.tokenizer
        if not tokenizer.is_fast:
            return []  # it does not say which characters a token is of
        read = tokenizer(
            text, return_offsets_mapping=True, truncation=True, max_length=words.max_length
        )
        places = enumerate(read["offset_mapping"])
    found: list[tuple[int, int, list[int]]] = []
    for position, (begin, end) in places:
        if position >= words.max_length:
            break
        while begin < end and text[begin].isspace():
            begin += 1
        if begin >= end:
            continue  # a special token, or a space alone
        if found and _is_one_word(text, found[-1], begin, end):
            first, last, positions = found[-1]
            found[-1] = first, max(last, end), [*positions, position]
        else:
            found.append((begin, end, [position]))
    return [(text[begin:end], tuple(positions)) for begin, end, positions in found]


def _is_one_word(text: str, before: tuple[int, int, list[int]], begin: int, end: int) -> bool:
    """Whether the token of text[begin:end] belongs to the word before it."""
    first, last, _ = before
    if begin < last:
        return True  # bytes of one character
    between = text[first:end]
    return not any(letter.isspace() or letter >= HAS_NO_SPACES for letter in between)
