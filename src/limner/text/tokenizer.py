"""The tokenizer: byte-level BPE trained on the captions, for any language."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from limner.config.model import MOST_TOKENS
from limner.errors import LimnerError
from limner.files.small_files import parse_json, read_text
from limner.messages import shorten

PAD, START = "<pad>", "<start>"
MOST_BYTES = 2**25
"""The largest tokenizer.json that is read."""
PARTS: dict[str, frozenset[str]] = {
    "normalizer": frozenset({"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents"}),
    "pre_tokenizer": frozenset({"ByteLevel", "Whitespace", "WhitespaceSplit", "Digits"}),
    "model": frozenset({"BPE"}),
    "post_processor": frozenset(),
    "truncation": frozenset(),
    "padding": frozenset(),
}
"""Allowed parts of a tokenizer.json, by type: none that make a text much longer."""
MOST_PARTS = 16
"""The most parts in a sequence of normalizers or pre-tokenizers."""


class CaptionTokenizer:
    """Captions to ids [L]: <start>, then tokens, padded with 0 to `max_length`.

    Bytes are the base alphabet, so every text can be encoded; case and Unicode forms are folded, so
    "Red Apple" and "red apple" are the same prompt. The empty prompt is <start> alone, which the
    model learns as "no caption" for classifier-free guidance.
    """

    longest = MOST_TOKENS

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size()

    @property
    def text_size(self) -> int:
        """Vocabulary size, for the built-in text encoder."""
        return self.vocab_size

    @classmethod
    def learn(cls, captions: Iterable[str], vocab_size: int, max_length: int) -> CaptionTokenizer:
        """Train a tokenizer with at most `vocab_size` tokens on captions; deterministic."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[PAD, START],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(map(encodable, captions), trainer)
        # As added tokens they would be recognised inside captions, and a literal "<pad>" would hide
        # a word.
        plain = json.loads(tokenizer.to_str()) | {"added_tokens": []}
        return cls(Tokenizer.from_str(json.dumps(plain)), max_length)

    def __call__(self, caption: str) -> Tensor:
        """int64 [max_length]; a longer caption is cut (`length` says by how much)."""
        ids = [1] + self.tokenizer.encode(encodable(caption)).ids[: self.max_length - 1]
        return torch.tensor(ids + [0] * (self.max_length - len(ids)))

    def encode(self, captions: Sequence[str]) -> Tensor:
        """int64 [B, max_length]: B captions, as the model takes them."""
        return torch.stack([self(caption) for caption in captions])

    def length(self, caption: str) -> int:
        """Number of tokens of a caption, including <start>, before truncation."""
        return 1 + len(self.tokenizer.encode(encodable(caption)).ids)

    def save(self, path: Path) -> None:
        path.write_text(self.tokenizer.to_str(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path, max_length: int) -> CaptionTokenizer:
        try:
            text = read_text(path, MOST_BYTES)
        except FileNotFoundError:
            raise LimnerError(f"{path} is missing; the checkpoint is incomplete") from None
        return cls.from_text(text, max_length, path)

    @classmethod
    def from_text(cls, text: str, max_length: int, path: Path) -> CaptionTokenizer:
        """Parse what `save` writes; `path` is only used in messages.

        Raises:
            LimnerError: it is not such a tokenizer, for example if its parts could expand a caption
                beyond memory.
        """
        check_parts(parse_json(text, f"{path} is not a tokenizer: it", MOST_BYTES), path)
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # tokenizers raises plain Exception
            raise LimnerError(f"{path} is not a tokenizer: {error}") from None
        known = tokenizer.get_vocab(with_added_tokens=True)
        count, highest = tokenizer.get_vocab_size(), max(known.values(), default=-1)
        if highest >= count:
            raise LimnerError(
                f"{path} is not a Limner tokenizer: model.vocab has the id {highest:,} and "
                f"{count:,} tokens, whose ids are 0 to {count - 1:,}"
            )
        return cls(tokenizer, max_length)


def check_parts(values: Any, path: Path) -> None:
    """Raises LimnerError if a tokenizer.json has parts other than those Limner writes or similarly
    harmless ones: a `Replace` may double a text forty times, `padding` fill all memory, and a
    `Split` take forever."""
    if not isinstance(values, dict):
        raise LimnerError(f"{path} is not a tokenizer: {shorten(values)}")
    for key, known in PARTS.items():
        part = values.get(key)
        if part is None:
            continue
        inner: Any = [part]
        if isinstance(part, dict) and part.get("type") == "Sequence":
            inner = part.get(f"{key}s")
        kinds = [one.get("type") if isinstance(one, dict) else None for one in _listed(inner)]
        if len(kinds) > MOST_PARTS or not all(isinstance(k, str) and k in known for k in kinds):
            raise LimnerError(
                f"{path} is not a Limner tokenizer: {key} is {shorten(part)}, and may only be "
                f"{', '.join(sorted(known)) or 'null'}"
            )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [None]


def encodable(text: str) -> str:
    """Replace lone surrogates, which JSON and command lines may contain, by "?"."""
    return text.encode("utf-8", errors="replace").decode("utf-8")
