"""A run that goes on with other data than before says so, and does not do it unasked."""

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from compared_runs import differing, elsewhere, logged, run
from photo_folders import image, of, photos
from processes import command_in, written

from limner.apps.autoencoder.fit import Fit
from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.locate import ROWS, checkpoints
from limner.checkpoint.manifest import seal
from limner.config import Config
from limner.data import row_fingerprints
from limner.data.convert.convert import prepare
from limner.data.open import open_data
from limner.data.row_fingerprints import ROW, Changes, compare, fingerprints_of, summed
from limner.errors import LimnerError
from limner.evaluation.evaluate import changed_data
from limner.files.folder_lock import FolderLock
from limner.training.folder import run_lock
from limner.training.monitor.run_log import read_log
from limner.training.trainer import Trainer

Build = Callable[..., Config]
WHOLE = "data.train_split=1.0"


def said(folder: Path) -> str:
    return "\n".join(e["message"] for e in read_log(folder / "log.jsonl") if e["kind"] == "event")


@pytest.fixture
def config(tiny_config: Build, tmp_path: Path) -> Config:
    """Of a run on six pictures."""
    folder = photos(tmp_path / "photos")
    for name in "def":
        image("white").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"picture {name}", encoding="utf-8")
    return of(tiny_config, folder, tmp_path / "run", WHOLE)


def cut(folder: Path) -> None:
    for name in "ab":
        (folder / f"{name}.png").unlink()
        (folder / f"{name}.txt").unlink()


def rewrite(folder: Path) -> None:
    for name in "cde":
        (folder / f"{name}.txt").write_text("rewritten", encoding="utf-8")


def replace(folder: Path) -> None:
    image("white").resize((64, 64)).save(folder / "f.png")


def add(folder: Path) -> None:
    image("black").save(folder / "g.png")
    (folder / "g.txt").write_text("one more", encoding="utf-8")


def another(folder: Path) -> None:
    for path in folder.iterdir():
        path.rename(path.with_name(f"other-{path.name}"))


CHANGES: list[tuple[list[Callable[[Path], None]], str]] = [
    ([cut], "of 6 pictures: 2 gone"),
    ([rewrite], "of 6 pictures: 3 with other captions"),
    ([replace], "of 6 pictures: 1 with another file"),
    ([add], "of 6 pictures: 1 new"),
    ([cut, rewrite, add], "of 6 pictures: 1 new, 2 gone, 3 with other captions"),
    ([another], "none of the 6 pictures it was trained on is there any more"),
]


@pytest.mark.parametrize(("changes", "words"), CHANGES)
def test_a_run_whose_data_changed_stops_and_asks(
    changes: list[Callable[[Path], None]], words: str, config: Config, tmp_path: Path
) -> None:
    run(config, steps=4)
    for change in changes:
        change(tmp_path / "photos")
    with pytest.raises(LimnerError) as error:
        Trainer(config)
    assert str(error.value) == (
        f"the data changed since {tmp_path / 'run' / 'checkpoint-3'} was saved ({words}); set "
        "another training.output_dir, or resume with the current data: "
        "--resume latest"
    )
    assert not (tmp_path / "run" / ".limner-train.lock").exists()
    folder = run(config, resume="latest")
    assert f"the data changed since checkpoint-3 was saved ({words}); resuming" in said(folder)
    run(config)  # from here on these are its data
    assert "nothing to do" in said(folder)


def test_a_finished_run_does_not_say_that_nothing_is_left_to_do(
    config: Config, tmp_path: Path
) -> None:
    run(config)
    another(tmp_path / "photos")
    with pytest.raises(LimnerError, match="none of the 6 pictures it was trained on is there"):
        Trainer(config)
    longer = config.model_copy(
        update={"training": config.training.model_copy(update={"max_steps": 8})}
    )
    folder = run(longer, resume="latest")
    assert [c.name for c in checkpoints(folder)][-1] == "checkpoint-8"


def test_the_same_data_are_no_news_and_the_run_is_the_same(config: Config, tmp_path: Path) -> None:
    whole = run(elsewhere(config, "whole"))
    run(config, steps=4)
    # Moved to another disk: the files have other times, and their folder another name.
    shutil.copytree(tmp_path / "photos", tmp_path / "copy", copy_function=shutil.copyfile)
    data = config.data.model_copy(update={"dataset_path": str(tmp_path / "copy")})
    folder = run(config.model_copy(update={"data": data}), resume="latest")
    assert "the data changed" not in said(folder)
    assert differing(whole / "checkpoint-6", folder / "checkpoint-6") == []
    assert logged(folder) == logged(whole)


def test_what_is_held_out_may_change(tiny_config: Build, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = [[f"{i}.png", f"picture {i}", i == 3] for i in range(6)]
    for name, _, _ in rows:
        image().save(folder / str(name))

    def write() -> None:
        with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["file_name", "text", "held_out"], *rows])

    write()
    config = of(tiny_config, folder, tmp_path / "run")
    run(config, steps=4)
    rows[3][1] = "something else"
    write()
    assert "the data changed" not in said(run(config))
    rows[2], rows[4] = rows[4], rows[2]
    write()
    with pytest.raises(LimnerError, match="the same 5 pictures in another order"):
        Trainer(config)


def test_a_checkpoint_of_an_earlier_version_goes_on_with_a_note(config: Config) -> None:
    run(config, steps=4)
    folder = Path(config.training.output_dir)
    (folder / "checkpoint-3" / ROWS).unlink()
    (folder / "checkpoint-3" / "manifest.json").unlink()
    seal(folder / "checkpoint-3")
    assert Checkpoint.open(folder / "checkpoint-3").rows() is None
    run(config)
    assert (
        "checkpoint-3 was saved by an earlier version and does not record its training pictures"
        in said(folder)
    )
    assert (folder / "checkpoint-6" / ROWS).is_file()


def test_damaged_rows_are_no_rows(config: Config) -> None:
    run(config, steps=4)
    path = Path(config.training.output_dir) / "checkpoint-3" / ROWS
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(LimnerError, match=r"rows\.npy is not what was written"):
        Checkpoint.open(path.parent).rows()
    np.save(path, np.zeros(3))
    path.with_name("manifest.json").unlink()
    seal(path.parent)
    with pytest.raises(LimnerError, match=r"rows\.npy is damaged: it holds float64"):
        Checkpoint.open(path.parent).rows()


@pytest.mark.parametrize("to", ["webdataset", "parquet", "metadata"])
def test_in_every_layout_rewritten_and_lost_rows_are_noticed(
    to: str, tiny_config: Build, tmp_path: Path
) -> None:
    source = photos(tmp_path / "photos")
    found = []
    for number, change in enumerate([None, rewrite_one, lose_one, None]):
        if number == 3:
            shutil.rmtree(source)
            photos(source)
        elif change:
            change(source)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        prepare("auto", source, tmp_path / "out", to=to)  # type: ignore[arg-type]
        words = [f"cache.folder={tmp_path / 'cache'}"]
        config = of(tiny_config, tmp_path / "out", tmp_path / "run", WHOLE, *words)
        data = open_data(config)
        found.append(fingerprints_of(data.set, data.trained.rows))
    assert compare(found[0], found[1]) == Changes(3, 3, rewritten=1)
    changes = compare(found[1], found[2])
    assert changes is not None
    assert (changes.before, changes.now, changes.gone) == (3, 2, 1)
    assert compare(found[0], found[3]) is None


def rewrite_one(folder: Path) -> None:
    (folder / "b.txt").write_text("rewritten", encoding="utf-8")


def lose_one(folder: Path) -> None:
    (folder / "c.png").unlink()
    (folder / "c.txt").unlink()


def made_up(count: int) -> np.ndarray:
    rows = np.zeros(count, ROW)
    generator = np.random.default_rng(0)
    rows["key"] = generator.integers(0, 2**63, count).astype("<u8") * 2 + 1
    for name in ("captions", "picture"):
        rows[name] = generator.integers(0, 2**32, count)
    rows["count"] = 1
    return rows


def test_an_evaluation_says_that_the_data_changed(config: Config, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(run(config))
    assert changed_data(checkpoint, open_data(config)) is None
    cut(tmp_path / "photos")
    said = changed_data(checkpoint, open_data(config))
    assert said is not None
    assert "since this checkpoint was saved (of 6 pictures: 2 gone)" in said


def test_an_autoencoder_that_goes_on_says_that_the_data_changed(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("diffusers")
    small = {"base_channels": 8, "layers_per_block": 1, "batch_size": 2, "crop": 16}
    settings = config.autoencoder.model_copy(update={**small, "max_steps": 1})
    config = config.model_copy(update={"autoencoder": settings})

    def fit() -> Fit:
        images = open_data(config).trained
        lock = FolderLock(tmp_path / "vae", "wait")
        return Fit(config, images, torch.device("cpu"), torch.float32, tmp_path / "fit", lock)

    fit().run()
    fit()
    assert "the data changed" not in caplog.text
    rewrite(tmp_path / "photos")
    fit()
    assert "since checkpoint-1 was saved (of 6 pictures: 3 with other captions)" in caplog.text


def test_of_very_many_rows_sums_are_kept(monkeypatch) -> None:
    rows = made_up(100_000)
    sums = summed(rows)
    assert len(sums) <= row_fingerprints.BINS
    assert sums["count"].sum() == 100_000
    assert compare(sums, summed(rows[::-1].copy())) is None
    assert str(compare(sums, summed(rows[1:]))) == "100,000 pictures then, 99,999 now"
    for name in ("captions", "picture"):
        other = rows.copy()
        other[name][5] += 1
        changes = compare(sums, summed(other))
        assert changes is not None
        assert str(changes).startswith("the same 100,000 pictures in another order, or with other")
    # Two captions of one bin change places: no sum of captions alone would tell.
    other, bins = rows.copy(), rows["key"] % row_fingerprints.BINS
    first = next(i for i in range(len(rows)) if (bins == bins[i]).sum() > 1)
    pair = np.flatnonzero(bins == bins[first])[:2]
    other["captions"][pair] = other["captions"][pair[::-1]]
    assert compare(sums, summed(other)) is not None
    changes = compare(rows, sums)  # a set that grew beyond what is kept one by one
    assert changes is not None
    assert (changes.before, changes.now) == (100_000, 100_000)


def test_captions_are_compared_as_a_list() -> None:
    from limner.data.dataset import Row

    class Drawn:
        def path(self, row: Row) -> None:
            return None

    one, other = (
        fingerprints_of(Drawn(), [Row("a", captions)])  # type: ignore[arg-type]
        for captions in (("a b", "c"), ("a", "b c"))
    )
    assert compare(one, other) == Changes(1, 1, rewritten=1)


def test_all_processes_of_a_run_end_when_the_first_may_not_write(
    config: Config, tmp_path: Path
) -> None:
    words = "train", "--config", str(written(config)), "training.device=cpu"
    with run_lock(tmp_path / "run"):
        codes, said = command_in(2, *words)
    assert codes == [2, 2]
    for rank in range(2):  # the same words: nobody waits for the other to be gone
        assert f"process {rank}: {tmp_path / 'run'} is in use: process {os.getpid()} on" in said
    codes, said = command_in(2, *words)
    assert codes == [0, 0], said
    assert not (tmp_path / "run" / ".limner-train.lock").exists()
    rewrite(tmp_path / "photos")
    codes, said = command_in(2, *words)
    assert codes == [2, 2]
    for rank in range(2):
        assert f"process {rank}: the data changed since" in said
