"""The short form of `python tests/faults/kills.py`, and what else two processes must keep."""

import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import kills
import kills_of_commands
import pytest
import torch
from first_step import started
from processes import fork_context

from limner.checkpoint.folder import load_tensors
from limner.checkpoint.locate import checkpoints
from limner.checkpoint.manifest import damage
from limner.training.monitor.run_log import read_log

SPAN = {1: (1.5, 4), 2: (3.0, 2)}
"""By processes: the longest life in seconds, and how many there are."""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(
    processes: int, tmp_path: Path
) -> None:
    longest, deaths = SPAN[processes]
    found = kills.harness(tmp_path, deaths, processes, seed=0, steps=40, longest=longest)
    assert found["different"] == []


def test_the_comparison_sees_a_single_bit(tmp_path: Path) -> None:
    for name in ("a", "b"):
        kills.uninterrupted(kills.small_run(tmp_path / name, 5, "training.num_workers=0"), 1)
    assert kills.differences(tmp_path / "a", tmp_path / "b") == []
    path = tmp_path / "b" / "checkpoint-5" / "model.pt"
    weights = load_tensors(path)
    name = "denoiser.final_layer.linear.bias"
    last = weights[name]
    last[0] = torch.nextafter(last[0], last[0] + 1)
    torch.save(weights, path)
    assert kills.differences(tmp_path / "a", tmp_path / "b") == [f"/model/{name}"]


def test_one_process_goes_on_as_two_and_two_as_one(tmp_path: Path) -> None:
    # Without Muon, which makes a full step of a gradient that is rounding alone.
    settings = (
        "training.gradient_accumulation_steps=1",
        "optimizer.type=adamw",
        "training.batch_size=4",
        "training.effective_batch_size=8",
        "lr_scheduler.type=constant",  # the only one that does not depend on the length
        "training.num_workers=0",
    )
    alone = kills.small_run(tmp_path / "alone", 15, *settings)
    kills.uninterrupted(alone, 1)
    for steps, processes in ((5, 1), (10, 2), (15, 1)):
        config = kills.small_run(tmp_path / "mixed", steps, *settings)
        resume = "latest" if steps > 5 else None
        kills.to_their_end(kills.start(kills.written(config), processes, resume), "a part")
    assert [c.name for c in checkpoints(tmp_path / "mixed")] == [
        f"checkpoint-{n}" for n in (5, 10, 15)
    ]
    one, other = (
        load_tensors(tmp_path / name / "checkpoint-15" / "model.pt") for name in ("alone", "mixed")
    )
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, atol=2e-5, rtol=1e-4)
    said = [e.get("message", "") for e in read_log(tmp_path / "mixed" / "log.jsonl")]
    assert not any("no longer the same run" in message for message in said)


# Signals


STEPS = 40


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    kills.uninterrupted(kills.small_run(folder, STEPS), 1)
    return folder


@pytest.mark.skipif(os.name == "nt", reason="Windows sends other signals")
@pytest.mark.usefixtures("as_in_a_terminal")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_ends_the_run_after_the_step_and_the_same_command_goes_on(
    name: str, tmp_path: Path, whole: Path
) -> None:
    config = kills.small_run(tmp_path / "asked", STEPS, "training.save_steps=1000")
    run = started(config)
    run.send_signal(getattr(signal, name))
    code, said = run.ended(60)
    assert code == 75
    assert f"stopped by {name} after step" in said
    assert "Run the same command to resume" in said
    (saved,) = checkpoints(tmp_path / "asked")
    assert f"step {saved.name.partition('-')[2]};" in said
    assert saved.name != f"checkpoint-{STEPS}"
    kills.to_their_end(kills.start(kills.written(config), 1), "the run that was asked to stop")
    # The log's windows are others, for the run was cut elsewhere.
    assert set(kills.differences(whole, tmp_path / "asked")) <= {"log.jsonl"}


@pytest.mark.usefixtures("as_in_a_terminal")
@pytest.mark.skipif(os.name == "nt", reason="Windows sends other signals")
def test_a_second_signal_ends_at_once_and_harms_nothing(tmp_path: Path) -> None:
    run = started(kills.small_run(tmp_path / "run", 10_000, "training.batch_size=64"))
    run.send_signal(signal.SIGINT)
    run.send_signal(signal.SIGTERM)
    code, _ = run.ended(60)
    assert code in (-signal.SIGTERM, 75)  # 75: the step was done before the second
    for path in checkpoints(tmp_path / "run"):
        assert damage(path) is None


# Other commands


@pytest.mark.parametrize("command", kills.COMMANDS)
def test_a_command_that_is_killed_loses_nothing_and_goes_on(command: str, tmp_path: Path) -> None:
    found = kills_of_commands.harness(tmp_path, command, kills=2, seed=0)
    assert found["kills"] == 2
    assert (found["wrong"], found["different"], found["left behind"]) == ([], [], [])


def test_an_error_of_the_harness_is_seen_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives: list[BaseProcess] = []

    def start(words: list[str]) -> BaseProcess:
        seconds = 0 if words[0] == "completion" else 600
        context = fork_context()
        lives.append(context.Process(target=time.sleep, args=(seconds,)))
        lives[-1].start()
        return lives[-1]

    def write(words: list[str]) -> float:
        (Path(words[0]) / "new").mkdir(parents=True)
        (Path(words[0]) / "new" / "file").touch()
        return 60.0

    def fails_beside_a_life(folder: Path) -> list[Path]:
        if len(lives) > 1:
            raise ZeroDivisionError("injected")
        return []

    command = kills_of_commands.Command(lambda made, place: [str(place)], lambda folder: None)
    monkeypatch.setitem(kills_of_commands.COMMANDS, "made-up", command)
    monkeypatch.setattr(kills_of_commands, "start", start)
    monkeypatch.setattr(kills_of_commands, "to_its_end", write)
    monkeypatch.setattr(kills_of_commands, "staged", fails_beside_a_life)
    with pytest.raises(ZeroDivisionError, match="injected"):
        kills_of_commands.harness(tmp_path, "made-up", kills=1, seed=1)
    assert [life.is_alive() for life in lives] == [False, False]


def test_what_is_neither_the_earlier_nor_the_new_is_seen() -> None:
    wrong = kills_of_commands.wrong
    old, new = {"a": "1", "b": "2"}, {"a": "3", "b": "4"}
    assert wrong(old, old, new, grows=False) is None
    assert wrong(new, old, new, grows=False) is None
    for mixed in ({"a": "3", "b": "2"}, {"a": "1"}, {}, {"a": "5", "b": "6"}):
        assert wrong(mixed, old, new, grows=False)
    assert wrong({}, {}, new, grows=False) is None
    assert wrong({"a": "1", "c": "5"}, {"a": "1"}, {"a": "1", "c": "5", "d": "6"}, True) is None
    assert wrong({"c": "5"}, {"a": "1"}, {"a": "1", "c": "5"}, True) == "lost ['a']"
    assert wrong({"a": "1", "c": "short"}, {"a": "1"}, {"a": "1", "c": "5"}, True)
