"""Whoever reads what a run prints may leave: the run goes on, and log.jsonl has everything."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kills
import pytest
from small_autoencoder import SMALL

from limner.checkpoint.locate import checkpoints
from limner.config import Config
from limner.training.monitor.run_log import read_log

if os.name == "nt":
    pytest.skip("POSIX descriptors and terminals", allow_module_level=True)

STEPS = 20


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return kills.small_run(tmp_path / "run", STEPS, "training.num_workers=0")


def limner(*words: str, **how: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "limner", *words]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **how)


def steps_logged(folder: Path) -> list[int]:
    return [e["step"] for e in read_log(folder / "log.jsonl") if e["kind"] == "train"]


def wait_for(there: Callable[[], Any], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not there():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_reader_of_a_pipe_leaves_after_a_line(config: Config, tmp_path: Path) -> None:
    process = limner(
        *("train", "--config", str(kills.written(config))),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stdout.readline().startswith(b"starting")
    process.stdout.close()
    process.stdout = None
    assert process.communicate(timeout=120)[1] == b""
    assert process.returncode == 0
    assert steps_logged(tmp_path / "run") == [5, 10, 15, STEPS]
    assert (tmp_path / "run" / "report.html").is_file()


def test_nothing_can_be_written_to_the_device_that_is_always_full(
    config: Config, tmp_path: Path
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with open("/dev/full", "wb") as full:
        words = "train", "--config", str(kills.written(config))
        process = limner(*words, stdout=full, stderr=full)
        assert process.wait(timeout=120) == 0
    assert steps_logged(tmp_path / "run") == [5, 10, 15, STEPS]


def test_an_autoencoder_is_finished_though_nobody_reads(tmp_path: Path) -> None:
    words = [w for w in kills.TINY if not w.startswith("data.")] + SMALL
    settings = ["data.dataset_name=shapes", *words, "autoencoder.max_steps=2"]
    read, write = os.pipe()
    os.close(read)
    process = limner(
        *("train-autoencoder", "--output", str(tmp_path / "vae"), *settings),
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    assert process.communicate(timeout=120)[1] == b""
    assert process.returncode == 0
    assert (tmp_path / "vae" / "results.json").is_file()


@pytest.mark.usefixtures("as_in_a_terminal")
@pytest.mark.parametrize("nohup", [False, True])
def test_a_terminal_is_closed(nohup: bool, tmp_path: Path) -> None:
    import fcntl
    import termios

    steps = 60 if nohup else 100_000
    config = kills.small_run(tmp_path / "run", steps, "training.save_steps=100000")
    file = kills.written(config)
    screen, terminal = os.openpty()

    def in_the_terminal() -> None:
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)  # what it controls hears of its end
        if nohup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = limner(
        *("train", "--config", str(file)),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=in_the_terminal,
    )
    os.close(terminal)
    os.set_blocking(screen, False)

    def first_step() -> bool:
        with contextlib.suppress(BlockingIOError):
            os.read(screen, 2**16)  # else it would wait for us
        return bool(steps_logged(tmp_path / "run"))

    wait_for(first_step, process)
    os.close(screen)
    assert process.wait(timeout=120) == (0 if nohup else 75)
    last = int(checkpoints(tmp_path / "run")[-1].name.partition("-")[2])
    assert last == steps if nohup else last >= max(steps_logged(tmp_path / "run"))
