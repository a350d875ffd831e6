"""Disks that are really full: a small file system where one can be mounted, and files that may not
grow any more (RLIMIT_FSIZE, as `ulimit -f` sets it). Nothing is injected here."""

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from compared_runs import differing, elsewhere, run
from PIL import Image
from runs import messages
from safetensors.torch import save_file
from small_disk import no_file_above

from limner.checkpoint.locate import checkpoints
from limner.checkpoint.manifest import damage
from limner.checkpoint.sharded import write_shard
from limner.cli import main
from limner.config import Config
from limner.data.precomputed.fill import fill
from limner.data.precomputed.store import Store
from limner.data.streaming.chunk_cache import Pieces
from limner.errors import LimnerError
from limner.files.atomic import replacing
from limner.files.full_disk import DiskFull
from limner.inference.saving import remember, save_all, save_image
from limner.training.monitor.run_log import RunLog
from limner.training.trainer import Trainer

if os.name == "nt":
    pytest.skip("Windows has neither", allow_module_level=True)

Build = Callable[..., Config]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """small_disk(bytes): a file system of that size; once more with another one: it is resized."""
    place = tmp_path / "disk"

    def mounted(size: int) -> Path:
        options = f"size={size}" + (",remount" if place.exists() else "")
        place.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        try:
            if subprocess.run(command, capture_output=True).returncode:
                raise OSError
        except OSError:
            place.rmdir()
            pytest.skip("nothing can be mounted here")
        return place

    yield mounted
    if place.exists():
        # Lazily: what failed may have a file open until its traceback is gone.
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_run_on_a_disk_that_fills_up_keeps_its_last_checkpoint_and_goes_on_when_there_is_room(
    tiny_config: Build, small_disk: Callable[[int], Path]
) -> None:
    config = tiny_config("training.max_steps=9")
    whole = run(elsewhere(config, "whole"))
    size = sum(f.stat().st_size for f in (whole / "checkpoint-3").iterdir())
    disk = small_disk(size * 5 // 2)
    config = config.model_copy(
        update={"training": config.training.model_copy(update={"output_dir": str(disk / "run")})}
    )
    with pytest.raises(LimnerError) as ended:
        Trainer(config).train()
    folder = disk / "run"
    assert [c.name for c in checkpoints(folder)] == ["checkpoint-3", "checkpoint-6"]
    assert all(damage(c) is None for c in checkpoints(folder))
    said = str(ended.value)
    assert said.startswith(f"{folder / 'checkpoint-9'} could not be written (No space left on dev")
    needed, free = said.partition("device: ")[2].split(f" are needed in {folder} and ")
    assert float(needed.split()[0]) == pytest.approx(size / 2**20, rel=0.1)
    assert float(free.split()[0]) < float(needed.split()[0])
    assert "the last good one is checkpoint-6" in said
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    small_disk(size * 5)
    Trainer(config).train()
    assert differing(whole / "checkpoint-9", folder / "checkpoint-9") == []


def test_a_run_whose_files_may_not_grow_goes_on_and_saves_at_the_next_time(
    tiny_config: Build,
) -> None:
    config = tiny_config("training.max_steps=9")
    whole = run(elsewhere(config, "whole"))
    trainer = Trainer(config)
    step = trainer.step

    def limited() -> Any:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        most = 100_000 if 4 <= trainer.state.step <= 6 else hard
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        return step()

    trainer.step = limited  # type: ignore[method-assign]
    trainer.train()
    assert [c.name for c in checkpoints(trainer.folder)] == ["checkpoint-3", "checkpoint-9"]
    (said,) = [m for m in messages(trainer.folder) if "could not be written" in m]
    assert "(File too large: a file in " in said
    assert "the last good one is checkpoint-3. Training continues" in said
    assert differing(whole / "checkpoint-9", trainer.folder / "checkpoint-9") == []


def test_a_log_that_could_be_written_in_part_has_each_line_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(tmp_path, Accelerator(cpu=True), 0)
    with no_file_above(1000):
        for step in range(1, 30):
            log.write("train", step, loss=0.125 * step)
    assert log.path.stat().st_size <= 1000
    log.write("train", 30, loss=3.75)
    lines = log.path.read_text("utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 31))
    assert capsys.readouterr().err.count("log.jsonl (File too large); its lines are kept") == 1


def by_torch(path: Path) -> None:
    torch.save({"a": torch.rand(50_000)}, path)


def by_safetensors(path: Path) -> None:
    save_file({"a": torch.rand(50_000)}, path)


def by_pillow(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="PNG")


def by_numpy(path: Path) -> None:
    np.save(path.with_suffix(".npy"), np.ones(50_000))


def by_python(path: Path) -> None:
    path.write_bytes(bytes(200_000))


def by_pyarrow(path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    table = pyarrow.table({"a": np.random.default_rng(0).random(50_000)})
    parquet.write_table(table, path)


def by_shards(path: Path) -> None:
    write_shard(path.parent, 0, 1, {"model": {"a": torch.rand(50_000)}})


WRITERS = (by_torch, by_safetensors, by_pillow, by_numpy, by_python, by_pyarrow, by_shards)


@pytest.mark.parametrize("write", WRITERS)
def test_every_library_s_error_is_that_of_a_disk_that_is_full(
    write: Callable[[Path], None], tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    for place, number in ((tmp_path, errno.EFBIG), (small_disk(100 * 1024), errno.ENOSPC)):
        (place / "made").mkdir()
        with no_file_above(50_000 if number == errno.EFBIG else 10**12):
            with pytest.raises(DiskFull) as told, replacing(place / "made" / "it") as staging:
                write(staging)
            assert told.value.errno == number
            assert told.value.filename is not None
            assert str(told.value).startswith(os.strerror(number))
        assert list((place / "made").iterdir()) == []


def fail(path: Path, error: Exception) -> None:
    with replacing(path) as staging:
        staging.write_bytes(b"x")
        raise error


def test_an_error_that_is_none_of_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    for error in (RuntimeError("unexpected pos 1 vs 2"), OSError(0, "a short write"), KeyError(1)):
        with pytest.raises(type(error)) as told:
            fail(tmp_path / "it", error)
        assert told.value is error


@pytest.mark.parametrize("layout", ["metadata", "imagefolder", "pairs", "webdataset", "parquet"])
def test_prepare_on_a_full_disk_leaves_nothing_and_says_why(
    layout: str, small_disk: Callable[[int], Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    noise, source = np.random.default_rng(0), tmp_path / "noise"
    source.mkdir()
    for number in range(8):
        pixels = noise.integers(0, 256, (200, 200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(source / f"{number}.png")
        (source / f"{number}.txt").write_text("noise", "utf-8")
    disk = small_disk(400 * 1024)
    words = ["prepare", "--input", str(source), "--output", str(disk / "new"), "--to", layout]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"{disk / 'new'} could not be written: No space left on device: the " in said
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("to", ["model.safetensors", "folder"])
def test_an_export_on_a_full_disk_leaves_the_earlier_one(
    to: str, trained: Path, small_disk: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    disk = small_disk(16 * 2**20)
    words = ["export", str(trained / "outputs"), "--output", str(disk / to)]
    assert main(words) == 0
    (file,) = disk.rglob("*.safetensors")
    before, size = file.read_bytes(), file.stat().st_size
    small_disk(size * 3 // 2)
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err
    start, needed, free = re.fullmatch(
        r"limner: (.*): (.*) are needed in .* and (.*) are free; free some disk space, or .*\n",
        said,
    ).groups()  # type: ignore[union-attr]
    assert start == f"{file} could not be written: No space left on device"
    assert float(needed.split()[0]) == pytest.approx(size / 1024, rel=0.05)
    assert float(free.split()[0]) == pytest.approx(size / 2 / 1024, rel=0.05)
    assert file.read_bytes() == before
    assert [path for path in disk.rglob("*") if path.is_file()] == [file]


def test_a_drawing_that_does_not_fit_is_kept_elsewhere_and_the_earlier_one_stays(
    small_disk: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    disk = small_disk(64 * 1024)
    earlier = Image.new("RGB", (4, 4), (200, 0, 0))
    save_image(remember(earlier, {"prompt": "red"}), disk / "a.png")
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    with pytest.raises(
        LimnerError, match=r"a\.png \(No space left on device: .* saved as .*0\.png"
    ):
        list(save_all([Image.fromarray(noise)], [disk / "a.png"]))
    assert Image.open(disk / "a.png").getpixel((0, 0)) == (200, 0, 0)
    assert [path.name for path in disk.iterdir()] == ["a.png"]


def test_stores_and_pieces_on_a_full_disk_say_what_to_do(
    small_disk: Callable[[int], Path],
) -> None:
    disk = small_disk(300 * 1024)
    store = Store.open(disk, "latents", {"made_of": "numbers"})
    ids = np.arange(16 * 16, dtype=np.uint8).reshape(16, 16)
    with pytest.raises(LimnerError, match=r"No space left on device: .* free.*cache\.folder"):
        fill(store, ids, lambda places: [torch.rand(1, 10_000) for _ in places], 4, 2)
    with pytest.raises(LimnerError, match=r"No space left on device: .* free.*cache\.folder"):
        Pieces(disk / "pieces", 2**30).get("a", lambda: [bytes(10**6)])
    assert not list((disk / "pieces").glob("*.piece"))
    small_disk(3 * 2**20)
    again = Store.open(disk, "latents", {"made_of": "numbers"})
    fill(again, ids, lambda places: [torch.rand(1, 10_000) for _ in places], 4, 2)
    assert len(again) == 16


def test_ulimit_in_the_shell_is_told_as_what_it_is(trained: Path, tmp_path: Path) -> None:
    command = f"ulimit -f 100; exec '{sys.executable}' -m limner export '{trained / 'outputs'}'"
    done = subprocess.run(
        ["sh", "-c", f"{command} --output '{tmp_path / 'out'}'"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "could not be written: File too large: a file in" in done.stderr
    assert "Traceback" not in done.stderr
