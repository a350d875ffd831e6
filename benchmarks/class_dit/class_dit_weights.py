"""Loading weights of published class-conditional DiTs, in both published layouts.

a file     DiT-XL-2-256x256.pt of the published code, or a checkpoint of its train.py
           (whose averaged weights are taken), or the same as .safetensors
a folder   of diffusers: DiTTransformer2DModel, or a whole DiTPipeline (transformer/, vae/)
"""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from class_dit import ClassDiT
from torch import Tensor

from limner.checkpoint.matching import fit_weights
from limner.errors import LimnerError
from limner.files.tensor_files import load_safetensors, load_tensors
from limner.models.dit import published_positions
from limner.pretrained.hub import WEIGHTS, find_folder, read_config, weight_files

KEY = "WEIGHTS"
HEADS = {1152: 16, 1024: 16, 768: 12, 384: 6}
"""Attention heads of the published sizes XL, L, B, and S by their width; no file says them."""
FILES = (".pt", ".pth", ".bin", ".safetensors")


@dataclass(frozen=True)
class PublishedDiT:
    """A network with its weights, and what must be known to draw with it."""

    model: ClassDiT
    sample_size: int
    """Side of the latents it was trained on."""
    folder: Path | None
    """Of a whole pipeline, whose vae/ belongs to it; else None."""


def read_published_dit(source: str | Path, num_heads: int | None = None) -> PublishedDiT:
    """Read published weights; nothing in them is executed.

    Args:
        source: a file, a folder, or the id of a Hub repository of diffusers' layout.
        num_heads: attention heads, where neither a config.json nor the published sizes tell.

    Raises:
        LimnerError: they cannot be had, or are of something else.
    """
    path = Path(source)
    if path.suffix in FILES and not path.is_dir():
        if not path.is_file():
            raise LimnerError(f"{path.absolute()}: there is no such file of weights")
        weights, settings, folder = _unwrapped(_read(path), path), {}, None
    else:
        inner = find_folder(str(source), KEY, subfolder="transformer")
        settings = read_config(inner)
        if settings.get("_class_name") != "DiTTransformer2DModel":
            raise LimnerError(
                f"{inner / 'config.json'} describes a {settings.get('_class_name')}; diffusers' "
                "class-conditional DiT is a DiTTransformer2DModel"
            )
        path = next(f for f in weight_files(inner) if f.suffix in WEIGHTS)
        weights = _checked(_from_diffusers(_read(path), path), path)
        patch, rows = settings["patch_size"], weights["x_embedder.proj.weight"].shape[0]
        side = settings["sample_size"] // patch
        weights["pos_embed"] = published_positions(side, side, rows)[None]
        folder = inner.parent if (inner.parent / "vae").is_dir() else None
    return _build(weights, path, num_heads or settings.get("num_attention_heads"), folder)


def _read(path: Path) -> dict[str, Any]:
    if path.suffix != ".safetensors":
        # train.py of the published code keeps its flags in an argparse.Namespace: plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return load_tensors(path)
    return load_safetensors(path)


def _unwrapped(loaded: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The averaged weights of a training checkpoint, or the weights themselves."""
    for key in ("ema", "model", "state_dict"):
        if isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    return _checked({name.removeprefix("module."): t for name, t in loaded.items()}, path)


def _checked(weights: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Raises LimnerError unless all is there that the network's sizes are read from."""
    needed = {"x_embedder.proj.weight": 4, "y_embedder.embedding_table.weight": 2}
    needed |= {"blocks.0.mlp.fc1.weight": 2}
    for name, dimensions in needed.items():
        if not isinstance(weights.get(name), Tensor) or weights[name].dim() != dimensions:
            raise LimnerError(
                f"{path} holds no weights of a published class-conditional DiT: {name} is missing, "
                "or has another shape"
            )
    return weights


def _build(
    weights: dict[str, Tensor], path: Path, num_heads: int | None, folder: Path | None
) -> PublishedDiT:
    patches = weights["x_embedder.proj.weight"]
    hidden_size, in_channels, patch_size = patches.shape[:3]
    heads = num_heads or HEADS.get(hidden_size)
    if heads is None or hidden_size % heads:
        raise LimnerError(
            f"{path}: how many attention heads a network of width {hidden_size} has cannot be seen "
            "from its weights; say --num_heads"
        )
    positions = weights.pop("pos_embed", None)
    if positions is None or positions.dim() != 3:
        raise LimnerError(f"{path}: pos_embed is missing, which says how large its pictures are")
    side = math.isqrt(positions.shape[1])
    usual = published_positions(side, side, hidden_size)
    if side**2 != positions.shape[1] or not torch.allclose(positions[0].float(), usual, atol=1e-4):
        raise LimnerError(
            f"{path}: its positions are not the fixed sines and cosines of a square picture, which "
            "is all that published DiTs have"
        )
    blocks = {int(m[1]) for name in weights if (m := re.match(r"blocks\.(\d+)\.", name))}
    model = ClassDiT(
        in_channels=in_channels,
        patch_size=patch_size,
        hidden_size=hidden_size,
        num_layers=len(blocks),
        num_heads=heads,
        # The half is lost again when the width is computed from it, and is safe from rounding.
        mlp_ratio=(weights["blocks.0.mlp.fc1.weight"].shape[0] + 0.5) / hidden_size,
        num_classes=weights["y_embedder.embedding_table.weight"].shape[0] - 1,
    )
    fit_weights(model, {name: tensor.float() for name, tensor in weights.items()}, path)
    return PublishedDiT(model.eval().requires_grad_(False), side * patch_size, folder)


RENAMED = {
    "pos_embed.proj": "x_embedder.proj",
    "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "transformer_blocks.0.norm1.emb.class_embedder.embedding_table": "y_embedder.embedding_table",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}
RENAMED_IN_BLOCKS = {
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}


def _from_diffusers(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Diffusers' names to the published ones.

    It keeps a copy of the time and label embeddings in each block (the first is taken), and three
    matrices for query, key, and value.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        layer, _, kind = name.rpartition(".")
        block = re.match(r"transformer_blocks\.(\d+)\.(.*)", layer)
        inner = block[2] if block else ""
        prefix = f"blocks.{block[1]}." if block else ""
        if layer in RENAMED:
            found[f"{RENAMED[layer]}.{kind}"] = tensor
        elif inner in RENAMED_IN_BLOCKS:
            found[f"{prefix}{RENAMED_IN_BLOCKS[inner]}.{kind}"] = tensor
        elif inner == "attn1.to_q":
            three = [f"{layer[:-1]}{part}.{kind}" for part in "qkv"]
            if missing := [part for part in three if part not in weights]:
                raise LimnerError(f"{path}: {missing[0]} is missing")
            found[f"{prefix}attn.qkv.{kind}"] = torch.cat([weights[part] for part in three])
        elif inner not in ("attn1.to_k", "attn1.to_v") and not inner.startswith("norm1.emb."):
            raise LimnerError(f"{path}: {name} is no weight of a DiTTransformer2DModel")
    return found
