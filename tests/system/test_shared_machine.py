"""A machine that others use, too: threads that wait let them compute, and the run says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import psutil
import pytest
import torch

from limner.config import Config
from limner.threads import OPENMP, share_the_machine
from limner.training.monitor import monitor
from limner.training.monitor.machine_share import CpuTimes, MachineShare, Shared, cpu_times
from limner.training.monitor.progress import plain_line
from limner.training.monitor.run_log import read_log
from limner.training.trainer import Trainer


def looks(monkeypatch: pytest.MonkeyPatch, *moments: CpuTimes, threads: int = 2) -> Shared | None:
    """On a machine of four cores."""
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    seen = iter(moments)
    share = MachineShare(lambda: next(seen))
    return share.look()


START = CpuTimes(wall=100, own=50, helpers=5, busy=1000)


@pytest.mark.parametrize(
    ("wall", "own", "helpers", "busy", "expected"),
    [
        (10, 20, 0, 20, None),  # alone
        (10, 20, 8, 28, None),  # its own loaders are no others
        (10, 20, 0, 39, None),  # others are there, and take nothing from it
        (10, 9, 0, 9, None),  # it waits, for a disk say, and nobody else computes
        (10, 12, 0, 32, Shared(0.6, 0.5, 2)),
        (10, 12, 4, 36, Shared(0.6, 0.5, 2)),
        (0.1, 0.0, 0, 0.4, None),  # too short to tell
    ],
)
def test_a_run_is_told_of_others_that_slow_it_down(
    wall: float, own: float, helpers: float, busy: float, expected: Shared | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    later = CpuTimes(START.wall + wall, START.own + own, START.helpers + helpers, START.busy + busy)
    found = looks(monkeypatch, START, later)
    assert found == (expected and pytest.approx(expected))


def test_the_times_are_those_of_this_process_and_of_all() -> None:
    before = cpu_times()
    while (now := cpu_times()).own < before.own + 0.2:
        pass
    assert now.wall >= before.wall + 0.15
    assert now.busy >= before.busy + 0.1  # counted in hundredths


def test_the_line_and_one_event_say_that_the_machine_is_shared(
    tiny_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(monitor.MachineShare, "look", lambda self: Shared(0.58, 0.41, 2))
    trainer = Trainer(tiny_config())
    trainer.train()
    said = [e["message"] for e in read_log(trainer.folder / "log.jsonl") if e["kind"] == "event"]
    expected = (
        "other programs use 41% of this machine: training gets 58% of the CPU time of its 2 "
        "threads, and runs more slowly"
    )
    assert said.count(expected) == 1
    assert " | CPU 58%, machine shared" in capsys.readouterr().out
    assert "shared" not in plain_line(1, 2, 3, 4.0, 0.5, 0.6, 7.0)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, OPENMP),
        ({"GOMP_SPINCOUNT": "7"}, {**OPENMP, "GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {}),
    ],
)
def test_what_the_environment_says_already_stays(
    environment: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", *OPENMP):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    share_the_machine()
    assert {name: os.environ[name] for name in OPENMP if name in os.environ} == expected
    for name in OPENMP:
        monkeypatch.delenv(name, raising=False)


def test_it_is_set_before_torch_is_loaded_by_every_command() -> None:
    program = (
        "import json, os, sys\n"
        "import limner.cli\n"
        "assert 'torch' not in sys.modules\n"
        "import limner.commands.estimate as command\n"
        "def run(options):\n"
        "    assert 'torch' not in sys.modules\n"
        "    print(json.dumps(dict(os.environ)))\n"
        "command.run = run\n"
        "limner.cli.main(['estimate'])\n"
    )
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", *OPENMP)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=clean, check=True
    )
    assert json.loads(done.stdout).items() >= OPENMP.items()


SUM = """
import os, sys, torch
torch.set_num_threads(2)
torch.manual_seed(0)
x = torch.randn(1 << 20, requires_grad=True)
y = (torch.randn(512, 512) @ torch.randn(512, 512)).sum() + (x * x).sum().exp().log()
y.backward()
print(y.item().hex(), x.grad.double().sum().item().hex())
"""


def test_the_setting_changes_no_bit() -> None:
    said = {
        subprocess.run(
            [sys.executable, "-c", SUM], capture_output=True, text=True, check=True,
            env={**os.environ, **environment},
        ).stdout
        for environment in ({"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"}, OPENMP)
    }  # fmt: skip
    assert len(said) == 1
