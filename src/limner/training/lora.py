"""LoRA (Hu et al. 2021, arXiv 2106.09685): freeze the denoiser and train low-rank adapters.

The text encoder, which is small, is trained whole (`lora.train_text_encoder`). The layers are
peft's. A checkpoint holds the weights with the adapters merged, so that sampling needs no peft. It
also holds what the run needs to resume exactly, and the adapters alone in peft's own format:

    checkpoint-1000/
      lora.safetensors      adapted weights as they were, and A and B as trained
      adapter/              adapter_config.json, adapter_model.safetensors: A and B averaged
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limner.checkpoint.folder import Adapters, Checkpoint
from limner.checkpoint.locate import ADAPTER, LORA
from limner.config import Config
from limner.errors import LimnerError
from limner.files.tensor_files import load_safetensors
from limner.models.dropout import ImageDropout
from limner.models.text_to_image import TextToImage

NAME = "default"
"""peft's name of the only adapter."""


def check_installed(config: Config) -> None:
    """Raises LimnerError if adapters are asked for and peft is not there."""
    if config.lora.rank is None:
        return
    try:
        import peft  # noqa: F401
    except ImportError:
        raise LimnerError('lora.rank needs the package peft: pip install "limner[lora]"') from None


def add_adapters(model: TextToImage, config: Config) -> list[str]:
    """Add adapters to the denoiser's matrices and freeze the other weights; returns a sentence
    about it.

    A is random (a function of the seed) and B zero, so the model computes the same as before.

    Raises:
        LimnerError: `lora.target_modules` names a module that does not exist.
    """
    if config.lora.rank is None:
        return []
    from peft import inject_adapter_in_model

    model.requires_grad_(False)
    model.text_encoder.requires_grad_(config.lora.train_text_encoder)
    torch.manual_seed(config.training.seed)
    inject_adapter_in_model(_peft_config(config, model.denoiser), model.denoiser, NAME)
    for _, layer in _adapted(model):
        # peft's would depend on the batch and on earlier random numbers.
        layer.lora_dropout[NAME] = ImageDropout(config.lora.dropout)
    learn = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in model.parameters()) - learn
    where = f"on {sum(1 for _ in _adapted(model))} matrices"
    if config.lora.train_text_encoder:
        where += ", and the text encoder"
    return [
        f"LoRA of rank {config.lora.rank} {where}: {learn:,} parameters are trained, the other "
        f"{whole:,} are frozen"
    ]


def _peft_config(config: Config, denoiser: nn.Module) -> Any:
    from peft import LoraConfig

    settings = config.lora
    there = sorted(
        {
            name.rpartition(".")[2]
            for name, module in denoiser.named_modules()
            if isinstance(module, nn.Linear) and name.startswith("blocks.") and "adaLN" not in name
        }
    )
    names = settings.target_modules or tuple(there)
    if unknown := [name for name in names if name not in there]:
        raise LimnerError(
            f"lora.target_modules: this model's blocks have no layer {unknown[0]!r}; choose from "
            f"{', '.join(there)}"
        )
    assert settings.rank
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha or settings.rank,  # type: ignore[arg-type]  # a factor: any number
        lora_dropout=settings.dropout,
        target_modules=rf"blocks\.\d+\.(.*\.)?({'|'.join(map(re.escape, names))})",
    )


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Each adapted layer with its name, in the order of the model."""
    for name, module in model.named_modules():
        if hasattr(module, "base_layer"):
            yield name, module


@torch.no_grad()
def merged(model: nn.Module) -> dict[str, Tensor]:
    """The state of the model without adapters, which computes the same."""
    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name
    }
    for name, layer in _adapted(model):
        state[f"{name}.weight"] = layer.base_layer.weight + layer.get_delta_weight(NAME)
    return state


def adapters_of(model: TextToImage, averaged: TextToImage | None) -> Adapters:
    """What a checkpoint holds of the adapters besides the merged weights."""
    kept = {n: t for n, t in model.state_dict().items() if ".lora_" in n}
    kept |= {f"{n}.base_layer.weight": layer.base_layer.weight for n, layer in _adapted(model)}
    shown = (averaged or model).denoiser
    described: Any = model.denoiser.peft_config  # peft leaves it there
    return Adapters(
        {name: tensor.detach() for name, tensor in kept.items()},
        {_peft_name(n): t for n, t in shown.state_dict().items() if ".lora_" in n},
        described[NAME].to_dict(),
    )


def _peft_name(name: str) -> str:
    return "base_model.model." + name.replace(f".{NAME}.", ".")


def load_checkpoint(checkpoint: Checkpoint, model: TextToImage, averaged: TextToImage) -> None:
    """Restore the model and the average exactly as they were saved.

    Raises:
        LimnerError: something is missing, damaged, or of other adapters.
    """
    kept = _read(checkpoint, LORA)
    frozen = checkpoint.tensors(averaged=False)
    wanted = model.state_dict()
    state = {
        name: kept[name] if name in kept else frozen.get(name.replace(".base_layer.", "."))
        for name in wanted
    }
    _fit(model, state, checkpoint.folder / LORA)
    file = f"{ADAPTER}/adapter_model.safetensors"
    if checkpoint.config.training.use_ema:
        shown, texts = _read(checkpoint, file), checkpoint.tensors(averaged=True)
        for name in state:
            if ".lora_" in name:
                state[name] = shown.get(_peft_name(name.removeprefix("denoiser.")))
            elif name.startswith("text_encoder."):
                state[name] = texts.get(name)
    _fit(averaged, state, checkpoint.folder / file)


def _fit(model: nn.Module, state: dict[str, Tensor | None], path: Path) -> None:
    for name, tensor in model.state_dict().items():
        found = state.get(name)
        if found is None or found.shape != tensor.shape:
            there = "nothing" if found is None else f"{tuple(found.shape)}"
            raise LimnerError(
                f"{path} does not fit the adapters of this configuration: {name} is "
                f"{tuple(tensor.shape)} in this run, {there} in the file"
            )
    model.load_state_dict(state)


def _read(checkpoint: Checkpoint, name: str) -> dict[str, Tensor]:
    path = checkpoint.folder / name
    checkpoint.verify(name)
    return load_safetensors(path)
