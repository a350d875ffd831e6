"""The weights as they lie in the page: one run of bytes, and where each of them is."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

Precision = Literal["int8", "float16", "float32"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
GROUP = 32
"""Numbers that share a scale; weights.js has the same. With one scale for a whole row, a picture is
10 to 20 dB further from that of the exact weights."""
ALIGNMENT = 4


def pack(weights: dict[str, Tensor], precision: Precision) -> tuple[bytes, list[dict[str, Any]]]:
    """Matrices in the precision; vectors and small tables, which are few, in float32.

    Returns:
        The bytes, and for each weight `name`, `shape`, `kind`, `at`, and for int8 `scales`: where
        its numbers and the scales of its groups (float16) begin.
    """
    packed, parts = bytearray(), []

    def put(values: np.ndarray) -> int:
        packed.extend(bytes(-len(packed) % ALIGNMENT))
        at = len(packed)
        packed.extend(values.astype(values.dtype.newbyteorder("<")).tobytes())
        return at

    for name, tensor in weights.items():
        values = tensor.detach().float().cpu().numpy()
        is_matrix = values.ndim == 2 and name.endswith(".weight")
        kind = precision if is_matrix else "float32"
        part: dict[str, Any] = {"name": name, "shape": list(values.shape), "kind": kind}
        if kind == "int8":
            whole, scales = in_groups(values)
            part |= {"at": put(whole), "scales": put(scales)}
        else:
            part["at"] = put(values.astype(kind))
        parts.append(part)
    return bytes(packed), parts


def in_groups(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers, int8 of the same count, and a scale for each `GROUP` of them, float16.

    The largest of a group is at most 127 times its scale.
    """
    flat = values.astype(np.float32).ravel()
    groups = np.pad(flat, (0, -len(flat) % GROUP)).reshape(-1, GROUP)
    exact = np.abs(groups).max(axis=1) / 127
    scales = exact.astype(np.float16)
    scales = np.where(scales < exact, np.nextafter(scales, np.float16(np.inf)), scales)
    divisors = np.where(scales > 0, scales, 1).astype(np.float32)[:, None]
    whole = np.rint(groups / divisors).astype(np.int8)
    return whole.ravel()[: len(flat)], scales
