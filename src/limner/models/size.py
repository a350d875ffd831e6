"""A lower bound on the size of a configured model, checked against the available memory."""

from __future__ import annotations

from torch import nn

from limner.config import Config
from limner.errors import LimnerError
from limner.memory import whole_memory
from limner.models.layers import swiglu_width

BYTES = 4
"""Bytes of a weight in a newly built model: float32."""


def count_parameters(model: nn.Module) -> int:
    """How many parameters a model has, with the text encoder that is trained with it. The adapters
    of LoRA do not count: a checkpoint has them added to the weights."""
    return sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)


def least_parameters(config: Config, text_size: int | None = None) -> int:
    """A lower bound on the number of parameters: the matrices of the blocks and the vocabulary.

    Args:
        text_size: vocabulary size of the built-in text encoder; None: unknown, so not counted.
    """
    model, text = config.model, config.text_encoder
    found = model.num_layers * _block(model.hidden_size, model.mlp_ratio)
    if text.pretrained_model_name is None and text.hidden_size:
        found += text.num_layers * _block(text.hidden_size, 4.0)
        found += ((text_size or 0) + (text.max_length or 0)) * text.hidden_size
    return found


def _block(width: int, mlp_ratio: float) -> int:
    """Attention: queries, keys, values, output; feed-forward: three matrices (SwiGLU), or two of at
    least the same total size."""
    return width * (4 * width + min(3 * swiglu_width(width, mlp_ratio), int(2 * mlp_ratio * width)))


def check_memory(config: Config, text_size: int) -> None:
    """Raises LimnerError if the weights alone exceed this machine's memory."""
    count = least_parameters(config, text_size)
    memory = whole_memory()
    if count * BYTES > memory:
        raise LimnerError(
            f"model.hidden_size {config.model.hidden_size:,}, model.num_layers "
            f"{config.model.num_layers:,}, and the rest of the configuration describe a model of "
            f"more than {count:,} parameters: {count * BYTES / 2**30:,.1f} GiB, and this machine "
            f"(or the job on it) has {memory / 2**30:,.1f} GiB of memory; use smaller values"
        )


def check_stored(config: Config, size: int, path: object) -> None:
    """Raises LimnerError if a file of `size` bytes cannot hold the weights of such a model, before
    the model is built."""
    if (count := least_parameters(config)) > size:  # a weight has at least one byte
        raise LimnerError(
            f"{path} has {size:,} bytes, and its configuration (model.hidden_size "
            f"{config.model.hidden_size:,}, model.num_layers {config.model.num_layers:,}, ...) "
            f"describes a model of more than {count:,} parameters; it is damaged, or cut off"
        )
