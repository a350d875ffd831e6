"""Ctrl-C while torch compiles the model: the run stops without waiting for the compiler, whose
half-written files are not left to be taken for whole ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import kills
import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from limner.checkpoint.locate import checkpoints
from limner.config import Config
from limner.errors import LimnerError
from limner.training.stopping import Stopped
from limner.training.train_step import TrainStep
from limner.training.trainer import Trainer

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows sends other signals")

SLOW = """#!{python}
# A compiler that never ends: it begins to write its library, and starts a part of itself.
import pathlib, subprocess, sys, time
words = sys.argv[1:]
if "-o" not in words or "-shared" not in words:  # it is asked for its version
    sys.exit(subprocess.call(["g++", *words]))
pathlib.Path(words[words.index("-o") + 1]).write_bytes(b"half of it" * 100)
part = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
pathlib.Path({begun!r}).write_text(str(part.pid))
time.sleep(3600)
"""


@pytest.fixture
def slow_compiler(tmp_path: Path) -> Path:
    """An executable; `begun` beside it appears when it compiles."""
    path = tmp_path / "slow"
    path.write_text(SLOW.format(python=sys.executable, begun=str(tmp_path / "begun")), "utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def starting(tmp_path: Path, slow_compiler: Path) -> Iterator[subprocess.Popen[str]]:
    """`limner train` of a small run, in a group of its own, as a shell starts it."""
    config = kills.small_run(tmp_path / "run", 6, "training.compile_model=true")
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "CXX": str(slow_compiler)}
    words = [sys.executable, "-m", "limner", "train", "--config", str(kills.written(config))]
    process = subprocess.Popen(
        words,
        env=os.environ | cache,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "begun").exists():
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("to_the_group", [True, False])  # by the terminal; by `kill`
def test_before_the_first_step_nobody_waits_for_the_compiler(
    to_the_group: bool, starting: subprocess.Popen[str], tmp_path: Path
) -> None:
    (os.killpg if to_the_group else os.kill)(starting.pid, signal.SIGINT)
    said, _ = starting.communicate(timeout=60)  # the compiler would take an hour
    assert starting.returncode == 75, said
    assert "SIGINT: stopping now" in said
    assert "stopped by SIGINT before the first step, so there is nothing to save" in said
    assert "Traceback" not in said
    assert not checkpoints(tmp_path / "run")
    assert not list((tmp_path / "cache").glob("*/*.so"))
    part = int((tmp_path / "begun").read_text("utf-8"))
    assert not _is_alive(part)


def _is_alive(number: int) -> bool:
    import psutil

    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class CompilerFailed(TorchDynamoException):
    pass


def interrupted_at(step: int, stops: bool) -> Callable[..., torch.Tensor]:
    """A loss in whose compilation a Ctrl-C ends the compiler, too."""
    loss = TrainStep.loss

    def compiled(self: TrainStep, *others: object) -> torch.Tensor:
        if self.state.step == step:
            if stops:
                signal.raise_signal(signal.SIGINT)
            raise CompilerFailed("g++ ended by signal 2")
        return loss(self, *others)  # type: ignore[arg-type]

    return compiled


@pytest.mark.usefixtures("as_in_a_terminal")
def test_in_a_later_step_what_was_made_is_saved_and_the_run_goes_on_as_if_nothing_had_been(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def config(name: str) -> Config:
        return tiny_config("training.max_steps=6", f"training.output_dir='{tmp_path / name}'")

    Trainer(config("whole")).train()
    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "loss", interrupted_at(4, stops=True))
        with pytest.raises(Stopped, match="stopped by SIGINT after step 4; saved in"):
            Trainer(config("cut")).train()
    assert checkpoints(tmp_path / "cut")[-1].name == "checkpoint-4"
    Trainer(config("cut")).train()
    assert set(kills.differences(tmp_path / "whole", tmp_path / "cut")) <= {"log.jsonl"}


def test_a_compiler_that_fails_by_itself_is_an_error(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainStep, "loss", interrupted_at(3, stops=False))
    with pytest.raises(CompilerFailed):
        Trainer(tiny_config("training.max_steps=6")).train()


@pytest.mark.usefixtures("as_in_a_terminal")
def test_a_resumed_run_that_is_stopped_before_its_first_step_resumes_from_where_it_was(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(tiny_config("training.max_steps=4", "training.save_steps=2")).train()

    def asked(self: TrainStep, *others: object) -> torch.Tensor:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("it went on")

    more = tiny_config("training.max_steps=6", "training.save_steps=2")
    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "loss", asked)
        with pytest.raises(Stopped, match="Run the same command to resume at step 4") as error:
            Trainer(more, resume="latest").train()
    assert isinstance(error.value, LimnerError)
    assert error.value.exit_code == 75
    state = Trainer(more, resume="latest").train()
    assert state.step == 6
