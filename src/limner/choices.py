"""Choices that the configuration and the flags of commands share: each list stands here alone.

It imports nothing, so that `limner --help` stays quick.
"""

from __future__ import annotations

from typing import Literal, get_args

Solver = Literal["ddpm", "ddim", "euler", "heun", "dpmsolver++", "unipc"]
SOLVERS: tuple[str, ...] = get_args(Solver)
"""Names of the functions in limner.diffusion.solvers."""
Format = Literal[
    "auto", "folder", "classes", "table", "coco", "cub", "datasets", "webdataset", "parquet"
]
TYPES: tuple[str, ...] = ("auto", "custom", *get_args(Format)[1:])
"""Values of `limner prepare --type`; "custom", which scripts of users have, means "auto"."""
Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[str, ...] = get_args(Dtype)
"""Of sampling and of features."""
