"""Safe loading of untrusted tensor files: only plain tensors, no larger than the file, or a
LimnerError that names the file and the tensor."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from limner.errors import LimnerError
from limner.messages import shorten_name

SHARED = 4
"""How many times the size of the file its tensors may have: tied weights share storage."""


def load_tensors(path: Path) -> dict[str, Any]:
    """Load a .pt file of tensors and plain values only: a pickle that would run code is refused."""
    try:
        _check_archive(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise LimnerError(f"{path} is missing; the checkpoint is incomplete") from None
    except LimnerError:
        raise
    except Exception as error:  # whatever damaged or malicious bytes cause
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            reason = "it contains other objects"  # torch's message advises to load it anyway
        raise LimnerError(
            f"{path} is damaged, or was rejected because it contains more than weights: {reason}"
        ) from None
    if not isinstance(loaded, dict):
        raise LimnerError(f"{path} contains a {type(loaded).__name__} instead of named weights")
    check_plain(loaded, path)
    return loaded


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Raises LimnerError."""
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise LimnerError(f"{path} is missing; the checkpoint is incomplete") from None
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        raise LimnerError(f"{path} is damaged: {error}") from None
    check_plain(tensors, path)
    return tensors


def check_plain(values: Any, path: Path) -> None:
    """Raises LimnerError for a tensor, however deep in `values`, that is not plain numbers in
    memory: sparse, quantised, complex, without a device, or larger than its storage."""
    whole = 0
    for name, tensor in _tensors(values):
        if why := _why_not_plain(tensor):
            raise LimnerError(f"{path} is damaged: {shorten_name(name)} is {why}")
        whole += tensor.nbytes
    if whole > SHARED * path.stat().st_size + 2**20:
        raise LimnerError(
            f"{path} is damaged: its tensors say that they take {whole:,} bytes, and it has "
            f"{path.stat().st_size:,}"
        )


def why_not_weights(tensor: Any, wanted: Tensor) -> str | None:
    """Why this tensor, of the same shape as `wanted`, cannot replace it as a weight; None: it
    can."""
    if tensor.is_floating_point() != wanted.is_floating_point():
        return f"{_name(tensor.dtype)} instead of {_name(wanted.dtype)}"
    if not tensor.is_floating_point():
        return None
    if tensor.element_size() < 2:  # float8, which has no isfinite
        tensor = tensor.float()
    return None if bool(torch.isfinite(tensor).all()) else "not finite: it contains NaN or infinity"


def _check_archive(path: Path) -> None:
    """Refuse compressed archives: torch stores tensors as they are, and compressed data may unpack
    to any size."""
    if not zipfile.is_zipfile(path):
        return  # from torch before 1.6, or no .pt file: torch says which
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise LimnerError(
            f"{path} is damaged, or is not a PyTorch file: it unpacks to more bytes than it has"
        )


def _tensors(values: Any) -> Iterator[tuple[str, Tensor]]:
    """Each tensor once, with its place; containers with several references are visited once."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", values)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Tensor):
            yield name, value
        if id(value) in seen or not isinstance(value, dict | list | tuple):
            continue
        seen.add(id(value))
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        waiting += [(f"{name}.{key}" if name else str(key), inner) for key, inner in pairs]


def _why_not_plain(tensor: Tensor) -> str | None:
    if tensor.layout != torch.strided or tensor.is_nested:
        return "a sparse tensor"
    if tensor.is_quantized:
        return "a quantised tensor"
    if tensor.device.type != "cpu":
        return f"a tensor without numbers (on the device {tensor.device.type})"
    if tensor.is_complex():
        return f"of complex numbers ({_name(tensor.dtype)})"
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        return f"a tensor of {tensor.nbytes:,} bytes, most of which are not in the file"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
