"""A run in a process of its own, once its first step is done."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import kills

from limner.config import Config
from limner.training.monitor.run_log import read_log


def started(config: Config, *words: str) -> subprocess.Popen[str]:
    """`limner train` of the configuration, once it has taken a step."""
    file = kills.written(config)
    process = subprocess.Popen(
        [sys.executable, "-m", "limner", "train", "--config", str(file), *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # as kills.live: more threads round otherwise
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )
    log = Path(config.training.output_dir) / "log.jsonl"
    deadline = time.monotonic() + 120
    while not any(e["kind"] == "train" for e in read_log(log)):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process
