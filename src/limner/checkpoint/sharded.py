"""The format of sharded checkpoints: a file for each process, and an index.

    checkpoint-1000/
      shards.json                          how many there are, and the optimizers' plain values
      shard-00001-of-00004.safetensors     this process's parts, {"model.*", "averaged.*", ...}
      training_state.json, config.yaml, tokenizer.json, lineage.json, manifest.json, ...   as in any

Shards are joined along the first dimension; what is not sharded (counters) is in the first file.
Any number of processes can read it. torch.distributed.checkpoint is not used, because it reads its
index with pickle, and nothing in a checkpoint may be able to run code.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from limner.distributed.dtensors import is_shard, local
from limner.errors import LimnerError
from limner.files.full_disk import as_os_error
from limner.files.small_files import read_json

INDEX = "shards.json"
MOST_INDEX_BYTES = 2**26
TENSOR = "tensor"
"""Key of the dict that stands for a tensor among the plain values: {"tensor": its name}."""


def shard_file(number: int, count: int) -> str:
    """Name of a shard file; numbering starts at 0."""
    return f"shard-{number + 1:05}-of-{count:05}.safetensors"


def write_shard(folder: Path, number: int, count: int, parts: dict[str, Any]) -> None:
    """Write this process's shards of `parts`, nested dicts of tensors; the first process also
    writes what is not sharded, and the index.

    Raises:
        OSError: it could not be written.
    """
    tensors: dict[str, Tensor] = {}
    plain = {name: _plain(value, name, tensors) for name, value in parts.items()}
    mine = {
        name: local(tensor).detach().to("cpu", copy=True).contiguous()
        for name, tensor in tensors.items()
        if is_shard(tensor) or number == 0
    }
    path = folder / shard_file(number, count)
    try:
        save_file(mine, path)
    except SafetensorError as error:
        needed = sum(tensor.nbytes for tensor in mine.values())
        raise as_os_error(error, folder, path, needed) or OSError(0, str(error), path) from None
    if number == 0:
        (folder / INDEX).write_text(json.dumps({"count": count, "parts": plain}), encoding="utf-8")


def read_shards(folder: Path, part: str) -> Any:
    """Gather one of the `parts`: its nested dicts with whole tensors, on the CPU.

    Raises:
        LimnerError: it is damaged.
        KeyError: there is no such part.
    """
    index = read_index(folder)
    plain = index["parts"][part]
    try:
        files = [folder / shard_file(number, index["count"]) for number in range(index["count"])]
        opened = [safe_open(path, "pt") for path in files]
        both = [(file, set(file.keys())) for file in opened]

        @functools.cache  # the index may repeat a name a thousand times
        def whole(name: str) -> Tensor:
            pieces = [file.get_tensor(name) for file, names in both if name in names]
            return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

        found = _filled(plain, whole)
    except (
        *(SafetensorError, OSError, LookupError, ValueError, TypeError),
        *(AttributeError, RuntimeError, RecursionError),
    ) as error:
        raise LimnerError(f"the shards in {folder} are damaged or incomplete: {error}") from None
    return found


def shard_files(folder: Path) -> tuple[str, ...]:
    """The names of its shards."""
    count = read_index(folder)["count"]
    return tuple(shard_file(number, count) for number in range(count))


def read_index(folder: Path) -> dict[str, Any]:
    """Read the index. Raises LimnerError if it is not one."""
    path = folder / INDEX
    try:
        index = read_json(path, MOST_INDEX_BYTES)
        known = type(index["count"]) is int and isinstance(index["parts"], dict)
        if not (known and 0 < index["count"] < 100_000):
            raise ValueError("it does not list any shards")
        return index
    except LimnerError:
        raise
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LimnerError(f"{path} is damaged: {error}") from None


def _plain(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Replace tensors by their names, collecting them in `tensors`. Dicts become lists of pairs,
    because JSON keys are strings."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {TENSOR: name}
    if isinstance(value, dict):
        return {"dict": [[k, _plain(v, f"{name}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        inner = [_plain(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": inner}
    return value


def _filled(plain: Any, tensor: Any) -> Any:
    if not isinstance(plain, dict):
        return plain
    ((kind, inner),) = plain.items()
    if kind == TENSOR:
        return tensor(inner)
    if kind == "dict":
        return {key: _filled(value, tensor) for key, value in inner}
    values = [_filled(value, tensor) for value in inner]
    return tuple(values) if kind == "tuple" else values
