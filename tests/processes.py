"""Training runs in several processes of this machine, as a launcher starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from limner.config import Config

PROGRAM = '''
import json, os, sys
import torch
from limner import Trainer, load_config
from limner import device as devices

devices.matmul_peak = lambda device, dtype: 1e12  # takes longer than these runs
torch.set_num_threads(1)
for config, resume in json.loads(sys.argv[1]):
    Trainer(load_config(config), resume=resume).train()
'''
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **more}


def launched(
    command: Sequence[str], timeout: float = 140, **more: str
) -> subprocess.CompletedProcess[str]:
    """A launcher's end; once more if two programs of this machine chose the same port."""
    for _ in range(2):
        process = subprocess.Popen(
            list(command),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**more),
        )
        try:
            said = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.terminate()  # a launcher ends its processes then, and not when it is killed
            process.communicate(timeout=60)
            raise
        if "EADDRINUSE" not in said[1]:
            break
    return subprocess.CompletedProcess(list(command), process.returncode, *said)


def run_in(processes: int, folder: Path, *runs: tuple[Config, Path | None]) -> None:
    """Train these, one after the other, each from a checkpoint or from its beginning."""
    (folder / "program.py").write_text(PROGRAM, encoding="utf-8")
    files = [(str(written(config)), resume and str(resume)) for config, resume in runs]
    launcher = [*TORCHRUN, "--standalone", f"--nproc_per_node={processes}"]
    ended = launched([*launcher, str(folder / "program.py"), json.dumps(files)])
    assert ended.returncode == 0, ended.stderr[-6000:]


def written(config: Config) -> Path:
    path = Path(config.training.output_dir).with_suffix(".yaml")
    path.write_text(config.to_yaml(), encoding="utf-8")
    return path


def leaves(value: object, name: str = "") -> dict[str, object]:
    """{"path/to/it": value} of nested dicts and lists."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, inner in items for k, v in leaves(inner, f"{name}/{key}").items()}
    return {name: value}


def same(a: object, b: object) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b  # type: ignore[arg-type]
