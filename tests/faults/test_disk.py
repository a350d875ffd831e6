"""Disks that are full, fail, or may not be written to; workers that die."""

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.tracking import TensorBoardTracker
from compared_runs import differing, elsewhere, run
from PIL import Image
from runs import events, messages

from limner.checkpoint import folder as checkpoint_module
from limner.checkpoint import manifest
from limner.checkpoint.locate import checkpoints
from limner.checkpoint.manifest import damage
from limner.checkpoint.saver import Saver
from limner.config import Config
from limner.data import images
from limner.errors import LimnerError
from limner.training import batches
from limner.training.trainer import Trainer

Build = Callable[..., Config]
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "the disk")
FILES = (
    *("model.pt", "ema.safetensors", "optimizer.pt", "config.yaml", "tokenizer.json"),
    "words.json",
    *("training_state.json", "lineage.json", "manifest.json", "rows.npy"),
)


@pytest.fixture
def full_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], list[str]]:
    """full_at(name, step): while the checkpoint of this step is saved, no byte of the file fits."""

    def inject(name: str, step: int) -> list[str]:
        hit: list[str] = []

        def fails(path: Any) -> bool:
            here = Path(path)
            if here.name == name and here.parent.name.startswith(f".checkpoint-{step}."):
                hit.append(name)
                here.write_bytes(b"")
                return True
            return False

        def wrap(function: Callable[..., Any], place: int) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                if fails(args[place]):
                    raise FULL
                return function(*args, **kwargs)

            return wrapped

        monkeypatch.setattr(torch, "save", wrap(torch.save, 1))
        monkeypatch.setattr(checkpoint_module, "save_file", wrap(checkpoint_module.save_file, 1))
        write_text = Path.write_text

        def text(path: Path, *args: Any, **kwargs: Any) -> int:
            if str(path).endswith(name) and path.parent.name.startswith(f".checkpoint-{step}."):
                hit.append(name)
                raise FULL
            return write_text(path, *args, **kwargs)

        monkeypatch.setattr(Path, "write_text", text)
        write_bytes = Path.write_bytes

        def data(path: Path, content: bytes) -> int:
            if (
                content
                and path.name == name
                and path.parent.name.startswith(f".checkpoint-{step}.")
            ):
                hit.append(name)
                raise FULL
            return write_bytes(path, content)

        monkeypatch.setattr(Path, "write_bytes", data)
        return hit

    return inject


@pytest.mark.parametrize("name", FILES)
def test_a_full_disk_at_a_save_costs_that_checkpoint_only(
    name: str, tiny_config: Build, full_at: Callable[[str, int], list[str]]
) -> None:
    config = tiny_config("training.max_steps=9")
    whole = run(elsewhere(config, "whole"))
    hit = full_at(name, 6)
    folder = run(config)
    assert hit
    assert [c.name for c in checkpoints(folder)] == ["checkpoint-3", "checkpoint-9"]
    assert differing(whole / "checkpoint-9", folder / "checkpoint-9") == []
    (said,) = [m for m in messages(folder) if "could not be written" in m]
    assert "No space left on device" in said
    assert "the last good one is checkpoint-3. Training continues" in said
    assert not list(folder.glob(".checkpoint*"))


@pytest.mark.parametrize(
    ("settings", "step", "kept"),
    [(["training.save_errors=stop"], 3, []), ([], 6, ["checkpoint-3"])],
)
def test_a_run_ends_with_a_sentence_when_told_to_stop_or_when_its_last_save_fails(
    settings: list[str],
    step: int,
    kept: list[str],
    tiny_config: Build,
    full_at: Callable[[str, int], list[str]],
) -> None:
    config = tiny_config(*settings)
    full_at("optimizer.pt", step)
    with pytest.raises(LimnerError, match=rf"checkpoint-{step} could not be written \(.*No space"):
        Trainer(config).train()
    assert [c.name for c in checkpoints(Path(config.training.output_dir))] == kept


@pytest.mark.parametrize("name", FILES[:3])
def test_a_short_write_is_no_checkpoint(
    name: str, tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = manifest.sync

    def lose_the_end(path: Path) -> None:
        if path.name == name and path.parent.name.startswith(".checkpoint-6."):
            os.truncate(path, path.stat().st_size - 1000)
        sync(path)

    monkeypatch.setattr(manifest, "sync", lose_the_end)
    folder = run(tiny_config("training.max_steps=9"))
    assert [c.name for c in checkpoints(folder)] == ["checkpoint-3", "checkpoint-9"]
    assert any("a short write" in message for message in messages(folder))


def test_the_log_waits_for_a_disk_that_is_full(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(elsewhere(tiny_config(), "whole"))
    trainer, opened = Trainer(tiny_config()), Path.open

    def full(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if path.name == "log.jsonl" and "a" in mode and 2 <= trainer.state.step <= 4:
            raise FULL
        return opened(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    trainer.train()
    for kind in ("train", "heldout"):
        steps = [e["step"] for e in events(whole, kind)]
        assert [e["step"] for e in events(trainer.folder, kind)] == steps
    assert "log.jsonl (No space left on device); its lines are kept" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["previews", "tensorboard"])
def test_a_preview_or_a_tracker_that_cannot_be_written_does_not_end_the_run(
    part: str,
    tiny_config: Build,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny_config(
        "training.preview_steps=3",
        "training.trackers=[tensorboard]" if part == "tensorboard" else "training.trackers=[none]",
    )
    trainer = Trainer(config)

    def full(*_: Any, **__: Any) -> None:
        raise FULL

    monkeypatch.setattr(Image.Image, "save", full)
    if part == "tensorboard":
        monkeypatch.setattr(TensorBoardTracker, "log", full)
    trainer.train()
    told = "the tracker tensorboard failed and is disabled" in capsys.readouterr().err
    assert told == (part == "tensorboard")
    assert (trainer.folder / "checkpoint-6").is_dir()
    said = [m for m in messages(trainer.folder) if "the preview was not drawn" in m]
    assert len(said) == 2
    assert "No space left on device" in said[0]


def test_permission_that_is_lost_in_mid_run(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir

    def denied(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.name.startswith(".checkpoint-6."):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", denied)
    folder = run(tiny_config("training.max_steps=9"))
    assert [c.name for c in checkpoints(folder)] == ["checkpoint-3", "checkpoint-9"]
    assert any("Permission denied" in message for message in messages(folder))


def test_a_folder_that_is_away_for_some_steps(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a network drive whose server restarts: nothing in it can even be looked at."""
    trainer = Trainer(tiny_config("training.max_steps=9"))
    step, save, away = trainer.step, Saver.save, [False]

    def hiccup(*args: Any) -> Any:
        away[0] = trainer.state.step in (4, 5)
        return step(*args)

    def save_and_wait(saver: Saver, *args: Any) -> None:
        save(saver, *args)
        saver.wait()

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Path, *args: Any, **kwargs: Any) -> Any:
            if away[0] and trainer.folder in (path, *path.parents):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return function(path, *args, **kwargs)

        return wrapped

    for name in ("stat", "open", "mkdir", "iterdir"):
        monkeypatch.setattr(Path, name, wrap(getattr(Path, name)))
    monkeypatch.setattr(Saver, "save", save_and_wait)
    trainer.step = hiccup  # type: ignore[method-assign]
    trainer.train()
    assert [e["step"] for e in events(trainer.folder, "train")] == list(range(1, 10))
    assert [c.name for c in checkpoints(trainer.folder)] == ["checkpoint-3", "checkpoint-9"]
    assert any("cannot be listed either" in message for message in messages(trainer.folder))


def test_older_checkpoints_go_only_when_a_newer_one_is_there(
    tiny_config: Build, full_at: Callable[[str, int], list[str]]
) -> None:
    full_at("model.pt", 6)
    folder = run(tiny_config("training.max_steps=9", "training.checkpoints_total_limit=1"))
    assert [c.name for c in checkpoints(folder)] == ["checkpoint-9"]
    full_at("model.pt", 12)
    config = tiny_config("training.max_steps=12", "training.checkpoints_total_limit=1")
    with pytest.raises(LimnerError, match="the last good one is checkpoint-9"):
        Trainer(config, resume="latest").train()
    assert [c.name for c in checkpoints(folder)] == ["checkpoint-9"]


@pytest.mark.parametrize("broken", ["cut short", "a bit", "no manifest", "a file is gone"])
def test_latest_is_the_newest_that_verifies(broken: str, tiny_config: Build) -> None:
    config = tiny_config()
    whole = run(elsewhere(config, "whole"))
    folder = run(config)
    newest = folder / "checkpoint-6"
    path = newest / "optimizer.pt"
    data = bytearray(path.read_bytes())
    if broken == "cut short":
        path.write_bytes(data[:-1])
    elif broken == "a bit":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        (newest / "manifest.json" if broken == "no manifest" else path).unlink()
    run(config)
    assert differing(whole / "checkpoint-6", newest) == []
    (said,) = [m for m in messages(folder) if m.startswith("skipped ")]
    assert said.startswith("skipped checkpoint-6: ")
    (newest / "manifest.json").unlink()
    (folder / "checkpoint-3" / "model.pt").unlink()
    with pytest.raises(LimnerError, match=r"(?s)no checkpoint in .*checkpoint-6.*checkpoint-3"):
        Trainer(config)  # and not a new run over what could be mended by hand


@pytest.mark.parametrize("killed_after", ["the old one moved", "nothing moved", "all moved"])
def test_a_kill_between_the_two_renames_loses_neither(
    killed_after: str, tiny_config: Build, tmp_path: Path
) -> None:
    folder = run(tiny_config())
    place = folder / "checkpoint-6"
    if killed_after == "the old one moved":
        place.rename(folder / ".checkpoint-6.old")
    if killed_after == "nothing moved":
        (folder / ".checkpoint-6.writing").mkdir()
    (folder / ".git.old").mkdir()  # not ours
    if killed_after == "all moved":
        (folder / ".checkpoint-6.old").mkdir()
    manifest.finish_interrupted(folder)
    assert (folder / ".git.old").is_dir()
    assert damage(place) is None
    assert not list(folder.glob(".checkpoint*"))


# Reading


@pytest.fixture
def own_pictures(tmp_path: Path) -> list[str]:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(12):
        Image.new("RGB", (20, 20), (20 * i, 0, 99)).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(f"colour {i}", encoding="utf-8")
    return [
        "data.dataset_name=null",
        f"data.dataset_path='{folder}'",
        "data.num_samples=null",
        "data.memory_mb=0",  # read again and again
    ]


@pytest.mark.parametrize("times", [1, 2, 1000])
def test_a_disk_that_fails_to_read(
    times: int, own_pictures: list[str], tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "RETRY_AFTER", 0.001)
    whole = run(elsewhere(tiny_config(*own_pictures), "whole"))
    trainer, opened, failures = Trainer(tiny_config(*own_pictures)), Image.open, []

    def failing(path: Any, *args: Any, **kwargs: Any) -> Any:
        if str(path).endswith("07.png") and len(failures) < times:
            failures.append(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Image, "open", failing)
    trainer.train()
    assert failures
    refused = [m for m in messages(trainer.folder) if "07.png: the file cannot be read" in m]
    if times > 2:  # listed, and another picture stands in; the others keep their places
        assert len(refused) == 1
        assert "Input/output error" in refused[0]
    else:  # the next try read it, and nothing else happened
        assert refused == []
        assert differing(whole / "checkpoint-6", trainer.folder / "checkpoint-6") == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows ends processes otherwise")
def test_a_worker_that_is_killed_is_replaced_and_nothing_changes(tiny_config: Build) -> None:
    config = tiny_config("training.num_workers=2", "training.prefetch_factor=1")
    whole = run(elsewhere(config, "whole"))
    trainer = Trainer(config)
    step = trainer.step

    def kill_then() -> Any:
        if trainer.state.step == 2:
            for worker in trainer.batches.loaded._workers:  # type: ignore[attr-defined]
                os.kill(worker.pid, signal.SIGKILL)
            time.sleep(0.2)
        return step()

    trainer.step = kill_then  # type: ignore[method-assign]
    trainer.train()
    assert differing(whole / "checkpoint-6", trainer.folder / "checkpoint-6") == []
    assert any("a data loading worker died" in m for m in messages(trainer.folder))


def test_workers_that_die_again_and_again_end_the_run_with_advice(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(tiny_config())

    def dead() -> Any:
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")
        yield

    monkeypatch.setattr(batches, "load_batches", lambda run: dead())
    with pytest.raises(LimnerError, match=r"died 5 times in step 1 .*training\.num_workers=0"):
        trainer.train()


def test_latents_that_are_no_numbers_are_refused(tiny_config: Build) -> None:
    trainer = Trainer(tiny_config())
    row = trainer.run.inputs.trained.rows[3]
    tensor = trainer.run.inputs.trained.tensor

    def spoilt(position: int, flipped: bool = False) -> torch.Tensor:
        value = tensor(position, flipped)
        return value * np.nan if position == 3 else value

    trainer.run.inputs.trained.tensor = spoilt  # type: ignore[method-assign]
    trainer.train()
    (said,) = [m for m in messages(trainer.folder) if "skipped a picture" in m]
    assert f"{row.key}: contains NaN or infinite values" in said
    assert all(event["loss"] is not None for event in events(trainer.folder, "train"))
