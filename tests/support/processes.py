"""Training runs in several processes of this machine, as a launcher starts them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import process_program
import torch

from limner.config import Config

PROGRAM = Path(__file__).with_name("process_program.py")
FORKS = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Without it torchrun's restarts find addresses of processes that are gone (pytorch issue 135712).
"""


@dataclass(frozen=True)
class Run:
    """One run among those of a launch; `fault` is a name in process_program.py."""

    config: Config
    resume: Path | None = None
    fault: str = ""


def launched(
    command: Sequence[str], timeout: float = 140, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A launcher's end; once more if two programs of this machine chose the same port."""
    for _ in range(2):
        process = started(command, **environment)
        try:
            said = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.terminate()  # a launcher ends its processes then, and not when it is killed
            process.communicate(timeout=60)
            raise
        if "EADDRINUSE" not in said[1]:
            break
    return subprocess.CompletedProcess(list(command), process.returncode, *said)


def started(command: Sequence[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        list(command),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment},
    )


def program(*runs: Run) -> list[str]:
    """What a launcher is to start: these runs, one after the other."""
    told = [(str(written(r.config)), r.resume and str(r.resume), r.fault) for r in runs]
    return [str(PROGRAM), json.dumps(told)]


def run_in(processes: int, *runs: Run, restarts: int = 0) -> str:
    """Train them to their ends; what was said. Without a launcher where none is needed: forked
    from a process that has imported torch, they start in a tenth of the time."""
    if not restarts:
        return forked(processes, program(*runs)[1])
    launcher = [*TORCHRUN, "--standalone", f"--nproc_per_node={processes}"]
    ended = launched([*launcher, f"--max_restarts={restarts}", *program(*runs)], **OWN_STORE)
    assert ended.returncode == 0, ended.stderr[-6000:]
    return ended.stdout + ended.stderr


def forked(processes: int, told: str) -> str:
    codes, words = ends_of(processes, "main", told)
    assert codes == [0] * processes, words[-6000:]
    return words


def command_in(processes: int, *words: str) -> tuple[list[int | None], str]:
    """`limner WORDS` as a launcher starts it: each process's exit code, and what was said."""
    return ends_of(processes, "command", json.dumps(words))


def ends_of(processes: int, what: str, told: str) -> tuple[list[int | None], str]:
    """Exit codes, and what was said, of a function of process_program.py in so many processes."""
    context = fork_context()
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        common = processes, free_port(), what, told, str(said)
        lives = [
            context.Process(target=process_program.as_rank, args=(number, *common))
            for number in range(processes)
        ]
        with none_left(*lives):
            for life in lives:
                life.start()
            for life in lives:
                life.join(140)
                if life.exitcode is None:
                    for other in lives:
                        other.kill()
        return [life.exitcode for life in lives], said.read_text("utf-8") if said.exists() else ""


IMPORTED: tuple[str, ...] = ("limner.training.trainer", "torch._dynamo")
"""What a training run imports, and the process that others are forked from, once for all."""
_imported: set[str] = set()


def fork_context(*modules: str) -> Any:
    """Where processes are forked from one that has imported torch and these modules; spawned on
    Windows."""
    context: Any = multiprocessing.get_context(FORKS)
    if FORKS == "forkserver":
        from multiprocessing import forkserver

        if _imported and not _imported.issuperset(modules):
            # It imports nothing after its start, and what each process imported itself would take
            # seconds of each: diffusers and transformers do.
            server: Any = forkserver._forkserver  # type: ignore[attr-defined]
            if server._forkserver_pid is not None:
                # It ends once nobody has its pipe, and processes that load pictures may have it.
                os.kill(server._forkserver_pid, signal.SIGKILL)
            server._stop()
        _imported.update(IMPORTED, modules)
        context.set_forkserver_preload(sorted(_imported))
    return context


@contextmanager
def none_left(*lives: BaseProcess) -> Iterator[None]:
    """Kill those that are alive at the end: an error would be hidden by that of removing a folder
    in which they go on writing."""
    try:
        yield
    finally:
        begun = [life for life in lives if life.pid is not None]
        for life in begun:
            life.kill()
        for life in begun:
            life.join(60)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


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
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    return a == b
