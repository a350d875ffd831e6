"""What a run may write over: nothing, an earlier run, or folders that Limner wrote."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lock_holders import left_behind
from photo_folders import files
from runs import messages

from limner.checkpoint.folder import Checkpoint, Contents
from limner.checkpoint.locate import checkpoints
from limner.checkpoint.saver import Saver
from limner.cli import main
from limner.config import Config
from limner.errors import LimnerError
from limner.files import folder_lock
from limner.files.folder_lock import TRAINING
from limner.files.output_folders import is_training_run, visible_names
from limner.training.folder import check_run_folder, keep_edited
from limner.training.resume import resume_config
from limner.training.trainer import Trainer


def as_words(config: Config) -> list[str]:
    return [
        f"{section}.{key}={json.dumps(value)}"
        for section, values in config.model_dump(mode="json").items()
        for key, value in values.items()
        if value is not None
    ]


# ---- foreign folders ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["config.yaml", "results.json", "report.html", "log.jsonl", "notes.txt", "photos/a.png"]
)
def test_a_folder_of_somebody_elses_is_not_written_into(
    name: str, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("# mine\ndata: {image_size: 16}\n", encoding="utf-8")
    before = files(tmp_path)
    with pytest.raises(LimnerError) as error:
        Trainer(tiny_config())
    said = str(error.value)
    assert said.startswith(
        f"training.output_dir: {tmp_path / 'run'} is not empty and is not a Limner run "
        f"(it contains {name.partition('/')[0]})"
    )
    assert f"training.output_dir={tmp_path}/run/run" in said
    assert files(tmp_path) == before
    with pytest.raises(LimnerError, match="is not a Limner run"):
        Trainer(tiny_config(), resume="no")


def test_a_configuration_of_ones_own_in_the_output_folder_survives(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch, capsys
) -> None:
    text = "# the size of my scans\n" + tiny_config().to_yaml()
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", "config.yaml", "training.output_dir=."]) == 2
    assert "training.output_dir: . is not empty and is not a Limner run" in capsys.readouterr().err
    assert files(tmp_path) == {"config.yaml": text.encode()}


@pytest.mark.parametrize("hidden", [".DS_Store", ".gitkeep", "Thumbs.db", ".git/config"])
def test_hidden_files_do_not_count(
    hidden: str, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    path = tmp_path / "run" / hidden
    path.parent.mkdir(parents=True)
    path.write_bytes(b"of the system")
    assert visible_names(tmp_path / "run") == []
    Trainer(tiny_config("training.max_steps=1")).train()
    assert path.read_bytes() == b"of the system"
    assert is_training_run(tmp_path / "run")


def test_a_folder_of_runs_may_hold_one_more(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for name in (
        *("demo/config.yaml", "demo/log.jsonl", "check/check.json", "check/problems.jsonl"),
        *("old/deep/config.yaml", "old/deep/checkpoint-3/model.pt", "bad/refused.jsonl"),
    ):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    check_run_folder(run)
    (run / "old" / "deeper").mkdir()
    (run / "old" / "deeper" / "a.png").touch()
    with pytest.raises(LimnerError, match=r"it contains old\)"):
        check_run_folder(run)


def test_a_folder_that_only_looks_like_a_run_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: resnet\nepochs: 3\n", encoding="utf-8")
    (tmp_path / "log.jsonl").write_text('{"epoch": 1, "loss": 2.5}\n', encoding="utf-8")
    with pytest.raises(LimnerError, match="is not a Limner run"):
        check_run_folder(tmp_path)
    ours = "data: {}\nmodel: {}\ntraining: {}\n"
    (tmp_path / "config.yaml").write_text(ours, encoding="utf-8")
    assert not is_training_run(tmp_path)
    (tmp_path / "log.jsonl").write_text('{"kind": "event", "step": 0}\n', encoding="utf-8")
    check_run_folder(tmp_path)  # as earlier versions left it
    (tmp_path / "log.jsonl").write_text("", encoding="utf-8")
    check_run_folder(tmp_path)
    (tmp_path / "log.jsonl").unlink()
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "training_state.json").touch()
    check_run_folder(tmp_path)


def test_a_run_that_was_killed_before_it_wrote_anything_goes_on(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").touch()
    with pytest.raises(LimnerError, match=r"it contains log\.jsonl\)"):
        check_run_folder(tmp_path)
    left_behind(tmp_path / TRAINING, pid=2**22 + 1)
    check_run_folder(tmp_path)


def test_a_file_is_no_folder(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine", encoding="utf-8")
    with pytest.raises(LimnerError, match=r"training\.output_dir: .*run is a file; use a folder"):
        Trainer(tiny_config())


def test_comments_in_a_runs_configuration_are_kept(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    Trainer(tiny_config("training.max_steps=1")).train()
    path = tmp_path / "run" / "config.yaml"
    written = path.read_text(encoding="utf-8")
    assert keep_edited(path) is None
    path.write_text("# why 16: my scans are small\n" + written, encoding="utf-8")
    Trainer(tiny_config("training.max_steps=2"), resume="latest").train()
    kept = path.with_name("config.edited.yaml")
    assert kept.read_text(encoding="utf-8").startswith("# why 16: my scans are small\n")
    assert "#" not in path.read_text(encoding="utf-8")
    assert "config.yaml contained comments; a copy is kept as config.edited.yaml" in (
        tmp_path / "run" / "log.jsonl"
    ).read_text(encoding="utf-8")
    path.write_text("# another\n" + written, encoding="utf-8")
    assert (
        keep_edited(path)
        == "config.yaml contained comments; a copy is kept as config.edited-2.yaml"
    )
    assert (
        keep_edited(path)
        == "config.yaml contained comments; a copy is kept as config.edited-2.yaml"
    )


# ---- resuming from elsewhere -------------------------------------------------------------------


def test_a_checkpoint_from_elsewhere_asks_where_to_write(
    tiny_config: Callable[..., Config], tmp_path: Path, capsys
) -> None:
    Trainer(tiny_config()).train()
    stranger = tmp_path / "from-a-friend"
    shutil.copytree(tmp_path / "run" / "checkpoint-3", stranger / "checkpoint-3")
    before = files(tmp_path)
    command = ["train", "--resume", str(stranger / "checkpoint-3"), "training.max_steps=7"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert f"it was written by a run in {tmp_path / 'run'}, but has been moved since" in said
    assert f"training.output_dir={stranger} to continue there, or a new folder" in said
    assert files(tmp_path) == before
    # Nor over the checkpoints of another run.
    assert main([*command, f"training.output_dir={tmp_path / 'run'}"]) == 2
    assert "belongs to another run than" in capsys.readouterr().err
    assert files(tmp_path) == before
    new = f"training.output_dir={tmp_path / 'new'}"
    config = resume_config(str(stranger / "checkpoint-3"), None, [new])
    assert config is not None
    assert config.training.output_dir == str(tmp_path / "new")


def test_in_its_own_folder_a_run_goes_on_by_any_name(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch
) -> None:
    Trainer(tiny_config()).train()
    monkeypatch.chdir(tmp_path)
    for name in ("run", "run/checkpoint-3", str(tmp_path / "run" / "checkpoint-6")):
        assert resume_config(name, None, []) is not None
    Trainer(tiny_config("training.max_steps=8"), resume="run/checkpoint-3").train()
    assert [c.name for c in checkpoints(tmp_path / "run")][-1] == "checkpoint-8"


def test_a_run_that_goes_back_keeps_the_new_way_and_the_old(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = "training.checkpoints_total_limit=2", "training.keep_best=false"
    Trainer(tiny_config("training.max_steps=9", "training.preview_steps=3", *limits)).train()
    folder = tmp_path / "run"
    old = files(folder / "checkpoint-9")
    write, there = Saver._write, list[tuple[str, bool]]()

    def watched(self: Saver, place: Path, contents: Contents) -> list[str]:
        notes = write(self, place, contents)
        there.append((place.name, place.is_dir()))
        return notes

    monkeypatch.setattr(Saver, "_write", watched)
    slower = tiny_config("training.max_steps=8", "training.learning_rate=0.0001", *limits)
    for _ in range(2):
        Trainer(slower, resume=folder / "checkpoint-6").train()
        assert there.pop() == ("checkpoint-8", True)
        assert Checkpoint.open(folder).state.step == 8
        assert not (folder / "previews" / "step-000009.png").exists()
    aside = [p.relative_to(folder).as_posix() for p in folder.glob("set-aside*/**/*[0-9]*")]
    assert {"set-aside/checkpoint-9", "set-aside-2/checkpoint-8"} <= set(aside)
    assert {"set-aside/previews/step-000009.png"} <= set(aside)
    assert files(folder / "set-aside" / "checkpoint-9") == old
    assert any("(checkpoint-8) were moved to " in said for said in messages(folder))


def test_a_damaged_one_that_was_passed_over_costs_no_new_one(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    limits = "training.checkpoints_total_limit=1", "training.keep_best=false"
    Trainer(tiny_config("training.max_steps=9")).train()
    (folder / "checkpoint-9" / "optimizer.pt").write_bytes(b"damaged")
    trainer = Trainer(tiny_config("training.max_steps=9", "training.save_steps=1", *limits))
    step = trainer.step

    def power_cut(*words: Any) -> Any:
        return 1 / 0 if trainer.state.step == 8 else step(*words)

    trainer.step = power_cut  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert [c.name for c in checkpoints(folder)] == ["checkpoint-8"]


def test_a_run_that_was_moved_goes_on_where_it_is(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    Trainer(tiny_config()).train()
    (tmp_path / "run").rename(tmp_path / "moved")
    config = resume_config("latest", None, [f"training.output_dir={tmp_path / 'moved'}"])
    assert config is not None
    assert Path(config.training.output_dir) == tmp_path / "moved"


# ---- two runs ----------------------------------------------------------------------------------


def test_two_runs_in_one_folder_are_refused_while_one_of_them_runs(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    trainer = Trainer(tiny_config("training.max_steps=1"))
    assert trainer.run.lock.path.is_file()
    command = [sys.executable, "-m", "limner", "train", *as_words(tiny_config())]
    second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert second.returncode == 2
    assert f"{tmp_path / 'run'} is in use: process " in second.stderr
    assert "or set another training.output_dir" in second.stderr
    trainer.train()
    assert not trainer.run.lock.path.exists()
    assert [c.name for c in checkpoints(tmp_path / "run")] == ["checkpoint-1"]


def test_a_run_whose_folder_was_taken_over_while_it_slept_writes_nothing_more(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(tiny_config("training.save_steps=1"))
    step, seen = trainer.step, dict[str, bytes]()

    def asleep(*words: Any) -> Any:
        if trainer.state.step == 3 and not seen:
            left_behind(tmp_path / "run" / TRAINING, pid=2**22 + 1, host="atlas")
            monkeypatch.setattr(folder_lock, "BEAT", 0.0)  # as if that long ago
            seen["log"] = (tmp_path / "run" / "log.jsonl").read_bytes()
        return step(*words)

    trainer.step = asleep  # type: ignore[method-assign]
    with pytest.raises(LimnerError, match=r"was taken over by process \d+ on atlas"):
        trainer.train()
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == seen["log"]
    assert [c.name for c in checkpoints(tmp_path / "run")][-1] == "checkpoint-3"
    assert (tmp_path / "run" / TRAINING).is_file()


def test_a_run_that_cannot_begin_leaves_no_lock(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(LimnerError):
        Trainer(tiny_config("data.dataset_name=null", f"data.dataset_path='{tmp_path / 'no'}'"))
    assert not (tmp_path / "run").exists()
