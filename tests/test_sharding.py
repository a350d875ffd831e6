"""A model in shards learns what a whole one learns, and its checkpoints are anyone's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import leaves, run_in, same
from runs import events, trained
from safetensors.torch import load_file

from limner.checkpoint import Checkpoint, load_tensors
from limner.config import Config
from limner.errors import LimnerError

SHARDED = "training.sharding=fsdp"
WHOLE_BATCH = ["training.effective_batch_size=8", "training.caption_dropout=0.3"]
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def contents(checkpoint: Path) -> dict[str, Any]:
    return {
        "model": load_tensors(checkpoint / "model.pt"),
        "averaged": load_file(checkpoint / "ema.safetensors"),
        "optimizers": load_tensors(checkpoint / "optimizer.pt"),
    }


def assert_close(a: Path, b: Path, **how: float) -> None:
    one, other = leaves(contents(a)), leaves(contents(b))
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(other[name], value, **(how or CLOSE), msg=lambda m, n=name: f"{n}: {m}")
        else:
            assert other[name] == value, name


def test_try(tiny_config, tmp_path):
    def config(name, *o):
        return tiny_config(*WHOLE_BATCH, f"training.output_dir='{tmp_path / name}'", *o)
    runs = {}
    for name, o in {"modern": ["model.dropout=0.1"], "dit": ["model.architecture=dit", "optimizer.type=adamw"]}.items():
        trained(config(f"{name}1", *o, "training.batch_size=8"))
        runs[name] = o
    run_in(4, tmp_path, *[(config(f"{n}4", *o, "training.batch_size=2", SHARDED), None) for n, o in runs.items()])
    for n in runs:
        for s in (3, 6):
            print(n, s)
            a, b = (leaves(contents(tmp_path / f"{n}{k}" / f"checkpoint-{s}")) for k in (1, 4))
            assert a.keys() == b.keys()
            worst = sorted(((a[k] - b[k]).abs().max().item(), k) for k in a if isinstance(a[k], torch.Tensor) and a[k].numel())[-4:]
            print(worst)
        print([[e["loss"] for e in events(tmp_path / f"{n}{k}", kind)] for k in (1, 4) for kind in ("train", "heldout")])
