"""Pretrained text encoders: CLIP, the T5 family, BERT-like models, and language models."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from limner.config import TextEncoderConfig
from limner.errors import LimnerError
from limner.memory import give_back_freed_memory
from limner.pretrained.hub import find_folder, read_pretrained, transformers_for
from limner.text.batch import TextEmbeddings
from limner.text.tokenizer import encodable

KEY = "text_encoder.pretrained_model_name"
USUAL_LENGTH = 128
TOWERS = {"clip": "CLIPTextModel", "siglip": "SiglipTextModel", "siglip2": "Siglip2TextModel"}
"""The text halves of models of pictures and text, by model type; they end in a summary state."""


class PretrainedTextEncoder:
    """A transformers text encoder; only its configuration and tokenizer are read until `load`.

    Raises:
        LimnerError: it cannot be found or read, or supports fewer tokens than configured.

    Attributes:
        width: of its states.
        max_length: tokens read of a caption, special ones included.
        longest: the most that it could read.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        assert config.pretrained_model_name is not None
        self.folder = find_folder(config.pretrained_model_name, KEY, subfolder="text_encoder")
        transformers = transformers_for(KEY)
        self.settings = self._read(transformers.AutoConfig)
        beside = self.folder.parent / "tokenizer"
        has_own = any(self.folder.glob("*token*")) or any(self.folder.glob("*vocab*"))
        place = beside if beside.is_dir() and not has_own else self.folder
        self.tokenizer = self._read(transformers.AutoTokenizer, place)
        kind = self.settings.model_type.removesuffix("_text_model")
        self.tower = TOWERS.get(kind)
        inner = getattr(self.settings, "text_config", None) or self.settings
        inner = getattr(inner, "encoder", None) or inner  # T5Gemma has one for each half
        self.width = int(getattr(inner, "hidden_size", None) or inner.d_model)
        limits = [
            self.tokenizer.model_max_length,
            getattr(inner, "max_position_embeddings", None) or 10**9,
        ]
        most = min(limits)
        if config.max_length is not None and config.max_length > most:
            raise LimnerError(
                f"text_encoder.max_length: {config.max_length}, but {self.folder} reads at most "
                f"{most} tokens; use {most}, or remove it"
            )
        self.max_length = config.max_length or min(USUAL_LENGTH, most)
        self.longest = int(most)
        self.model: Any = None
        self.loaded: tuple[torch.device, torch.dtype] | None = None

    @property
    def text_size(self) -> int:
        """Width of the encoder states."""
        return self.width

    def load(self, device: torch.device, dtype: torch.dtype) -> None:
        """Put the weights on the device, in `dtype` (float32 or bfloat16)."""
        if self.loaded == (device, dtype):
            return
        transformers = transformers_for(KEY)
        settings, family = self.settings, transformers.AutoModel
        if self.tower:
            settings, family = None, getattr(transformers, self.tower)
        elif type(settings) in transformers.AutoModelForTextEncoding._model_mapping:
            family = transformers.AutoModelForTextEncoding
            settings.is_encoder_decoder = False  # T5Gemma's encoder insists on it
        model, info = self._read(
            family,
            dtype=dtype,
            output_loading_info=True,
            **({"config": settings} if settings else {}),
        )
        # BERT's pooler is trained for another task, is often left out, and is not used here.
        if missing := [name for name in info["missing_keys"] if "pooler" not in name]:
            raise LimnerError(
                f"{KEY}: {self.folder} lacks {len(missing)} weights of a {family.__name__}, such "
                f"as {sorted(missing)[0]}; it is incomplete, or another kind of model"
            )
        if getattr(model.config, "is_encoder_decoder", False):
            model = model.get_encoder()
        model = getattr(model, "language_model", model)
        self.model = model.to(device).eval().requires_grad_(False)
        self.loaded = device, dtype

    def unload(self) -> None:
        """Free its memory."""
        self.model = self.loaded = None
        gc.collect()
        give_back_freed_memory()

    def length(self, caption: str) -> int:
        """Number of tokens of a caption, including special tokens, before truncation."""
        return len(self.tokenizer(encodable(caption), verbose=False)["input_ids"])

    def encode(self, captions: Sequence[str]) -> TextEmbeddings:
        """B captions, padded to the longest of them: TextEmbeddings in float32 on the device."""
        rows = self.rows(captions)
        assert self.loaded
        return TextEmbeddings.stack(rows, max(len(states) for states, _ in rows)).to(self.loaded[0])

    def rows(self, captions: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        """The hidden states [l, D] and the pooled vector [D] of each caption, float32 on the
        CPU."""
        assert self.loaded, "load() comes first"
        return read_captions(self.model, self.tokenizer, captions, self.max_length, self.summary)

    @property
    def summary(self) -> str:
        """What stands for a whole caption: see `read_captions`."""
        if self.tower:
            return "pooler"
        known = transformers_for(KEY).AutoModelForTextEncoding._model_mapping
        reads_forward = type(self.settings) not in known and not self.settings.is_encoder_decoder
        return "last" if reads_forward else "mean"

    def _read(self, family: Any, folder: Any = None, **options: Any) -> Any:
        return read_pretrained(family, folder or self.folder, KEY, **options)


@torch.no_grad()
def read_captions(
    model: Any, tokenizer: Any, captions: Sequence[str], max_length: int, summary: str
) -> list[tuple[Tensor, Tensor]]:
    """Encode captions with an encoder and a tokenizer of transformers.

    Args:
        max_length: tokens read of a caption, special ones included.
        summary: what stands for the whole caption: "pooler", the encoder's own (CLIP); "last", the
            state of the last token, of a language model that reads from left to right; or "mean".

    Returns:
        The hidden states [l, D] and the pooled vector [D] of each caption, float32 on the CPU.
    """
    read = tokenizer(
        [encodable(caption) for caption in captions],
        truncation=True,
        max_length=max_length,
        padding=False,
    )["input_ids"]
    # Some language models have no token at all for the empty caption.
    known = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, 0)
    read = [ids or [next(token for token in known if token is not None)] for ids in read]
    longest = max(map(len, read))
    padding = tokenizer.pad_token_id or 0
    ids = torch.tensor([row + [padding] * (longest - len(row)) for row in read])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in read])
    output = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
    states = output.last_hidden_state.float().cpu()
    rows = []
    for i, row in enumerate(read):
        own = states[i, : len(row)].clone()
        if summary == "pooler":
            vector = output.pooler_output[i].float().cpu()
        else:
            vector = own[-1].clone() if summary == "last" else own.mean(dim=0)
        rows.append((own, vector))
    return rows
