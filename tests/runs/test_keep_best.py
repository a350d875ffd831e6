"""A run that gets worse keeps its best checkpoint, says so, and says whether it copies."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import events, messages, trained

from limner.checkpoint import manifest
from limner.checkpoint.folder import Checkpoint
from limner.config import Config
from limner.files.folder_lock import FolderLock
from limner.training.monitor import monitor
from limner.training.monitor.memorisation_check import copying
from limner.training.monitor.monitor import RunMonitor
from limner.training.trainer import Trainer


def planned(monkeypatch: pytest.MonkeyPatch, heldout: list[float]) -> None:
    """The held-out losses of a run, in their order; trained ones fall."""
    given, falling = iter(heldout), iter(range(100, 0, -1))

    def losses_of(self: RunMonitor, grid: object, batch_size: int) -> dict[str, float]:
        is_heldout = grid is self.grids[""]
        return {"500": next(given) if is_heldout else float(next(falling))}

    monkeypatch.setattr(RunMonitor, "losses_of", losses_of)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("checkpoint-*")}


def run(tiny_config: Callable[..., Config], *overrides: str) -> Path:
    config = tiny_config(
        "training.max_steps=12",
        "training.heldout_steps=2",
        "training.save_steps=100",
        "training.checkpoints_total_limit=1",
        *overrides,
    )
    return trained(config).folder


def test_the_best_checkpoint_stays(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(monkeypatch, [9, 5, 6, 7, 8, 9])
    folder = run(tiny_config)
    assert names(folder) == {"checkpoint-4", "checkpoint-12"}
    assert any("lowest at step 4 (5; 9 now)" in said for said in messages(folder))


def test_a_run_that_gets_better_keeps_only_the_newest(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(monkeypatch, [9, 8, 7, 6, 5, 4])
    folder = run(tiny_config)
    assert names(folder) == {"checkpoint-12"}
    assert not any("lowest at step" in said for said in messages(folder))


def test_the_best_is_found_again_after_a_resume(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(monkeypatch, [9, 5, 6, 7, 8, 9])
    run(tiny_config, "training.max_steps=6")
    planned(monkeypatch, [7, 8, 9])
    config = tiny_config(
        "training.max_steps=12",
        "training.heldout_steps=2",
        "training.save_steps=100",
        "training.checkpoints_total_limit=1",
    )
    trainer = Trainer(config, resume="latest")
    trainer.train()
    assert names(trainer.folder) == {"checkpoint-4", "checkpoint-12"}


def test_files_of_people_s_own_stay_where_a_checkpoint_goes(
    tiny_config: Callable[..., Config],
) -> None:
    limits = "training.save_steps=3", "training.checkpoints_total_limit=1"
    plain = *limits, "training.keep_best=false"
    folder = trained(tiny_config("training.max_steps=3", *plain)).folder
    old = folder / "checkpoint-3"
    (old / "favourite.png").write_bytes(b"mine")
    (old / ".DS_Store").write_bytes(b"nobody's")
    (old / "notes").mkdir()
    (old / "notes" / "a.txt").write_text("seed 7", encoding="utf-8")
    Trainer(tiny_config("training.max_steps=12", *plain), resume="latest").train()
    left = sorted(p.relative_to(old).as_posix() for p in old.rglob("*") if p.is_file())
    assert left == ["favourite.png", "notes/a.txt"]
    assert names(folder) == {"checkpoint-3", "checkpoint-12"}
    (said,) = [m for m in messages(folder) if "your own files" in m]
    assert said.endswith("checkpoint-3, older than the checkpoints to keep, was deleted except for "
                         "your own files: favourite.png and 1 more")  # fmt: skip
    assert Checkpoint.open(folder).state.step == 12
    assert not list(folder.glob(".checkpoint*"))


def test_one_that_is_being_swept_stays_until_it_is_not(
    tiny_config: Callable[..., Config],
) -> None:
    limits = "training.checkpoints_total_limit=1", "training.keep_best=false"
    trainer = trained(tiny_config("training.max_steps=3", *limits))
    folder, old = trainer.folder, trainer.folder / "checkpoint-3"
    with FolderLock(old, "sweep another", ".limner-sweep.lock"):
        Trainer(tiny_config(*limits), resume="latest").train()
        assert names(folder) == {"checkpoint-3", "checkpoint-6"}
    (old / ".limner-sweep.lock").write_text("{}", encoding="utf-8")  # of one that was killed
    os.utime(old / ".limner-sweep.lock", (0, 0))
    Trainer(tiny_config("training.max_steps=9", *limits), resume="latest").train()
    assert names(folder) == {"checkpoint-9"}


def test_an_old_checkpoint_that_cannot_be_deleted_costs_no_new_one(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_use(folder: Path) -> None:
        raise PermissionError(13, "in use by another program", str(folder))

    monkeypatch.setattr(manifest, "remove", in_use)
    limits = "training.save_steps=3", "training.checkpoints_total_limit=1"
    folder = trained(
        tiny_config("training.max_steps=9", "training.keep_best=false", *limits)
    ).folder
    assert names(folder) == {"checkpoint-3", "checkpoint-6", "checkpoint-9"}
    said = [m for m in messages(folder) if "could not be deleted (in use by another program)" in m]
    assert len(said) == 2
    assert not any("could not be written" in m for m in messages(folder))


def test_it_can_be_turned_off(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(monkeypatch, [9, 5, 6, 7, 8, 9])
    assert names(run(tiny_config, "training.keep_best=false")) == {"checkpoint-12"}


@pytest.mark.parametrize(
    ("few", "verdict"), [(1, "are copies"), (20, "too few to tell, with 1 held out")]
)
def test_a_run_that_memorises_looks_for_copies_once(
    few: int, verdict: str, tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "FEW", few)
    planned(monkeypatch, [9, 5, 6, 7, 8, 9])
    monkeypatch.setattr(monitor, "copying", lambda *parts: 0.2)
    folder = run(tiny_config)
    assert [event["ratio"] for event in events(folder, "copies")] == [0.2]
    assert any("0.20 times as far" in said and verdict in said for said in messages(folder))


def test_copies_are_found(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trained(tiny_config("data.train_split=0.5"))
    parts = trainer.averaged, trainer.run.objective, trainer.run.inputs, trainer.config.sampling
    honest = copying(*parts, torch.float32)
    one = trainer.run.inputs.trained.tensor(0)
    monkeypatch.setattr(
        "limner.training.monitor.memorisation_check.draw",
        lambda model, objective, words, prompts, *rest: one[None].repeat(len(prompts), 1, 1, 1),
    )
    assert copying(*parts, torch.float32) < 1e-3 < honest
