"""One run in several processes, as torchrun and accelerate start them: the run of one process."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from processes import (
    OWN_STORE,
    TORCHRUN,
    Run,
    free_port,
    launched,
    leaves,
    program,
    run_in,
    same,
    started,
    written,
)
from runs import events, messages, trained
from safetensors.torch import load_file
from tiny import TINY

from limner import device as devices
from limner.checkpoint.folder import load_tensors
from limner.checkpoint.locate import checkpoints
from limner.config import Config, load_config
from limner.errors import LimnerError
from limner.training import stopping
from limner.training.memory_probe import probe

SETTINGS = [
    "training.effective_batch_size=8",
    "training.batch_size=4",
    "training.caption_dropout=0.3",
    "optimizer.type=adamw",  # Muon makes a full step of a gradient that is rounding alone
]
Configured = Callable[..., Config]


def contents(checkpoint: Path) -> dict[str, Any]:
    """Every tensor and number of a checkpoint, by name."""
    state = json.loads((checkpoint / "training_state.json").read_text(encoding="utf-8"))
    del state["seconds"]
    return leaves(
        {
            "model": load_tensors(checkpoint / "model.pt"),
            "averaged": load_file(checkpoint / "ema.safetensors"),
            "optimizers": load_tensors(checkpoint / "optimizer.pt"),
            "state": state,
        }
    )


def differences(a: Path, b: Path) -> list[str]:
    one, other = contents(a), contents(b)
    return [n for n in one.keys() | other.keys() if not same(one.get(n), other.get(n))]


def assert_close(found: Path, expected: Path) -> None:
    one, other = contents(expected), contents(found)
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(other[name], value, atol=2e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def configure(tmp_path_factory: pytest.TempPathFactory) -> Configured:
    """configure(name, overrides): a run into a folder of that name."""
    folder = tmp_path_factory.mktemp("runs")

    def build(name: str, *overrides: str) -> Config:
        place = f"training.output_dir='{folder / name}'"
        return load_config(None, [*TINY, *SETTINGS, place, *overrides])

    return build


@pytest.fixture(scope="module")
def undisturbed(configure: Configured) -> Path:
    """The folder of a run in two processes, by `accelerate launch -m limner train`."""
    config = configure("undisturbed")
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--cpu"]
    limner = ["-m", "limner", "train", "--config", str(written(config))]
    ended = launched(
        [*accelerate, "--num_processes=2", "--num_machines=1", "--main_process_port=0", *limner]
    )
    assert ended.returncode == 0, ended.stderr[-6000:]
    # Only the main process says anything.
    assert ended.stdout.count("parameters on") == ended.stdout.count("Look at ") == 1
    return Path(config.training.output_dir)


def test_accelerate_launch_makes_the_run_of_one_process(
    undisturbed: Path, configure: Configured, quick_end: None
) -> None:
    one = trained(configure("one")).folder
    for step in (3, 6):
        assert_close(undisturbed / f"checkpoint-{step}", one / f"checkpoint-{step}")


def test_one_killed_on_one_of_two_machines_changes_nothing(
    undisturbed: Path, configure: Configured
) -> None:
    config = configure("killed")
    with_store = [*TORCHRUN, "--nnodes=2", "--nproc_per_node=1", "--max_restarts=2"]
    meeting = ["--rdzv_backend=c10d", "--rdzv_id=test", f"--rdzv_endpoint=127.0.0.1:{free_port()}"]
    command = [*with_store, *meeting, *program(Run(config, fault="killed_once"))]
    machines = [started(command, **OWN_STORE) for _ in range(2)]
    said = [machine.communicate(timeout=140)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said[0][-4000:] + said[1][-4000:]
    assert any("Signal 9" in words or "exitcode: -9" in words for words in said)
    assert "another process of this run has ended" in "".join(said)
    folder = Path(config.training.output_dir)
    assert any("resumed at step 3" in message for message in messages(folder))
    assert differences(folder / "checkpoint-6", undisturbed / "checkpoint-6") == []


def test_a_machine_that_is_lost_leaves_the_run_to_the_other(
    undisturbed: Path, configure: Configured
) -> None:
    config = configure("lost", "training.save_steps=1")
    folder = Path(config.training.output_dir)
    elastic = [*TORCHRUN, "--nnodes=1:2", "--nproc_per_node=1", "--max_restarts=3"]
    # How soon a machine counts as lost, and how long others are waited for.
    soon = "keep_alive_interval=1,keep_alive_max_attempt=2,last_call_timeout=3"
    place = f"--rdzv_endpoint=127.0.0.1:{free_port()}"
    meeting = ["--rdzv_backend=c10d", "--rdzv_id=test", place, f"--rdzv_conf={soon}"]
    command = [*elastic, *meeting, *program(Run(config, fault="dawdling"))]
    stays = started(command, **OWN_STORE)
    time.sleep(1)  # so that the other finds it
    goes = started(command, **OWN_STORE)
    wait_for(lambda: checkpoints(folder), stays)
    two = load_config(folder / "config.yaml").training
    for process in [psutil.Process(goes.pid), *psutil.Process(goes.pid).children(recursive=True)]:
        process.kill()
    goes.communicate()
    said = stays.communicate(timeout=140)[1]
    assert stays.returncode == 0, said[-6000:]
    one = load_config(folder / "config.yaml").training
    assert (two.gradient_accumulation_steps, one.gradient_accumulation_steps) == (1, 2)
    assert any("resumed at step" in message for message in messages(folder))
    assert_close(folder / "checkpoint-6", undisturbed / "checkpoint-6")


def test_short_memory_in_one_process_halves_all_at_once(
    undisturbed: Path, configure: Configured
) -> None:
    config = configure("short")
    run_in(2, Run(config, fault="short_of_memory"))
    folder = Path(config.training.output_dir)
    assert any("out of memory at step 5 (in another process)" in m for m in messages(folder))
    assert contents(folder / "checkpoint-6")["/state/pieces"] == 2
    assert_close(folder / "checkpoint-6", undisturbed / "checkpoint-6")


def test_one_that_fails_ends_all_with_an_error(configure: Configured) -> None:
    began = time.monotonic()
    command = [*TORCHRUN, "--standalone", "--nproc_per_node=2"]
    ended = launched([*command, *program(Run(configure("failing"), fault="failing"))])
    assert ended.returncode != 0
    assert "ZeroDivisionError: injected" in ended.stderr
    assert time.monotonic() - began < 100  # nobody waits for the timeout


def test_a_signal_that_reaches_all_of_them_and_the_launcher_saves(
    undisturbed: Path, configure: Configured
) -> None:
    config = configure("asked")
    folder = Path(config.training.output_dir)
    command = [*TORCHRUN, "--standalone", "--nproc_per_node=2"]
    launcher = started([*command, *program(Run(config, fault="dawdling"))])
    wait_for(lambda: events(folder, "train"), launcher)
    for process in [*psutil.Process(launcher.pid).children(recursive=True), launcher]:
        process.send_signal(signal.SIGTERM)
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode != 0
    assert said.count("Stopped: stopped by SIGTERM after step") == 2
    (saved,) = checkpoints(folder)
    assert saved.name in [f"checkpoint-{step}" for step in range(1, 6)]
    run_in(2, Run(config))
    assert differences(folder / "checkpoint-6", undisturbed / "checkpoint-6") == []


def test_only_a_late_second_signal_ends_a_launched_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    raised: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    try:
        with stopping.StopOnSignal() as stop:
            for _ in range(3):  # its own, torchrun's, Slurm's
                stop._asked(signal.SIGTERM, None)
            assert (stop.name, raised) == ("SIGTERM", [])
            monkeypatch.setattr(stopping, "ECHO", 0.0)
            stop._asked(signal.SIGINT, None)
            assert raised == [signal.SIGINT]
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_program_that_a_process_starts_is_none_of_the_run(
    configure: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`training.batch_size: auto` measures in one, which would wait for the others."""
    there = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**there, "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    assert probe(configure("probe"))["peak_bytes"] > 0


def wait_for(there: Callable[[], object], launcher: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not there():
        assert launcher.poll() is None, launcher.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Each process has a GPU of its own


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_a_process_takes_the_gpu_of_its_number(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert devices.choose_device("auto") == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert devices.choose_device("auto") == devices.choose_device("cuda") == torch.device("cuda", 1)
    assert devices.choose_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(LimnerError, match="torch sees only 2; start 2 processes"):
        devices.choose_device("auto")
