"""The store: what was computed once comes back, and nothing else does."""

import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stores import KEY, Maker, contents, filled, ids_of

from limner.data.precomputed import fill as store_writing
from limner.data.precomputed.fill import check_space, fill
from limner.data.precomputed.store import Store
from limner.errors import LimnerError


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_each_row_comes_back_as_it_was_made(tmp_path: Path, dtype: torch.dtype) -> None:
    filled(tmp_path, maker=Maker(dtype=dtype))
    for store in (
        Store.open(tmp_path, "latents", KEY),
        pickle.loads(pickle.dumps(filled(tmp_path))),
    ):
        assert len(store) == 20
        places = store.find(ids_of(20))
        assert sorted(places) == list(range(20))
        for i in (0, 7, 8, 19):
            row = store.read(int(places[i]))
            assert row.dtype == dtype
            assert torch.equal(row, torch.full((1, 2, 3), float(i), dtype=dtype))
        assert (store.find(ids_of(5, seed=1)) == -1).all()


def test_rows_may_have_different_counts(tmp_path: Path) -> None:
    store = Store.open(tmp_path, "captions", KEY)
    rows = [torch.full((n, 4), float(n)) for n in (3, 1, 7, 2)]
    fill(store, ids_of(4), lambda some: [rows[i] for i in some], 3, 2)
    assert store.longest == 7
    for place, row in zip(store.find(ids_of(4)), rows, strict=True):
        assert torch.equal(store.read(int(place)), row)


def test_only_new_contents_are_computed_and_equal_ones_once(tmp_path: Path) -> None:
    filled(tmp_path, 10)
    more, maker = ids_of(14), Maker()
    more[13] = more[11]
    store = Store.open(tmp_path, "latents", KEY)
    assert store.missing(more).tolist() == [10, 11, 12]
    fill(store, more, maker, 8, 3)
    assert maker.asked == [10, 11, 12]
    places = store.find(more)
    assert places[13] == places[11] >= 0


def test_what_was_read_is_a_copy_and_survives_giving_memory_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limner.data.precomputed.store.GIVE_BACK_AFTER", 20)
    store = filled(tmp_path)
    places = store.find(ids_of(20)).tolist()
    rows = [store.read(place) for place in places]
    rows[3] += 1
    assert [float(row[0, 0, 0]) for row in rows] == [float(i) + (i == 3) for i in range(20)]
    assert float(store.read(places[3])[0, 0, 0]) == 3


# Refused rows


def test_rows_that_are_refused_are_known_with_their_reason(tmp_path: Path) -> None:
    nan, infinite = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)
    nan[0, 1, 1], infinite[0, 0, 2] = float("nan"), float("inf")
    maker = Maker({4: "truncated", 5: nan, 9: infinite}, torch.float32)
    filled(tmp_path, maker=maker)
    store, ids = Store.open(tmp_path, "latents", KEY), ids_of(20)
    assert np.flatnonzero(store.find(ids) < 0).tolist() == [4, 5, 9]
    assert store.reason(ids[4].tobytes()) == "truncated"
    for i in (5, 9):
        assert "not finite (NaN or infinite)" in str(store.reason(ids[i].tobytes()))
    assert store.reason(ids[0].tobytes()) is None
    again = Maker()
    fill(store, ids, again, 8, 3)
    assert again.asked == [4]  # which may be there now; what was computed would be the same again
    assert np.flatnonzero(store.find(ids) < 0).tolist() == [5, 9]
    places = Store.open(tmp_path, "latents", KEY).find(ids).tolist()
    assert float(store.read(places[4])[0, 0, 0]) == 4
    assert [float(store.read(places[i])[0, 0, 0]) for i in (3, 6, 19)] == [3, 6, 19]


def test_a_store_of_refused_rows_only_is_tried_again_as_often_as_it_is_opened(
    tmp_path: Path,
) -> None:
    for _ in range(2):
        maker = Maker({0: "a", 1: "b", 2: "c"})
        store = filled(tmp_path, 3, maker)
        assert maker.asked == [0, 1, 2]
        assert store.find(ids_of(3)).tolist() == [-1] * 3
        assert store.longest == 0
        assert store.reason(ids_of(3)[1].tobytes()) == "b"
        assert [path.name for path in store.folder.iterdir()] == ["key.json"]
    store = filled(tmp_path, 3)
    assert sorted(store.find(ids_of(3)).tolist()) == [0, 1, 2]


def test_a_shard_of_refused_rows_of_an_earlier_release_is_tried_again(tmp_path: Path) -> None:
    store, ids = Store.open(tmp_path, "latents", KEY), ids_of(3)
    maker = Maker({0: "a", 1: "b", 2: "c"})
    batch = store_writing._packed(maker([0, 1, 2]))
    chunk = store_writing.hashlib.blake2b(ids.tobytes(), digest_size=8).hexdigest()
    shard = store.folder / f"shard-{chunk}.safetensors"
    store_writing._write_shard(store, ids, [batch], ["a", "b", "c"], shard)
    assert sorted(filled(tmp_path, 3).find(ids).tolist()) == [0, 1, 2]


def test_content_that_could_not_be_read_is_neither_stored_nor_found(tmp_path: Path) -> None:
    ids = ids_of(3)
    ids[1] = 0
    store, maker = Store.open(tmp_path, "latents", KEY), Maker()
    fill(store, ids, maker, 8, 3)
    assert maker.asked == [0, 2]
    assert (store.find(ids) >= 0).tolist() == [True, False, True]
    assert "its file could not be read" in str(store.reason(ids[1].tobytes()))


# Keys


@pytest.mark.parametrize(
    ("name", "value"), [("autoencoder", "xyz"), ("image_size", 128), ("dtype", "float32")]
)
def test_a_store_of_another_key_is_never_used_and_says_why(
    tmp_path: Path, name: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    old = filled(tmp_path)
    key = KEY | {name: value}
    new = Store.open(tmp_path, "latents", key)
    assert len(new) == 0
    assert new.other_keys() == [
        f"{old.folder} exists but is not used: {name} is {KEY[name]} in the store and {value} in "
        "this run"
    ]
    # The same if its files, or the folder, are put in the place of the new one.
    for path in old.folder.glob("shard-*"):
        (new.folder / path.name).write_bytes(path.read_bytes())
    opened = Store.open(tmp_path, "latents", key)
    assert len(opened) == 0
    assert f"{name} is {KEY[name]} in the store and {value} in this run" in caplog.messages[0]
    (new.folder / "key.json").write_bytes((old.folder / "key.json").read_bytes())
    with pytest.raises(
        LimnerError, match=f"{name} is {KEY[name]} in the store and {value} in this run; delete"
    ):
        Store.open(tmp_path, "latents", key)


def test_a_key_that_is_damaged_or_missing_is_refused(tmp_path: Path) -> None:
    folder = filled(tmp_path).folder
    (folder / "key.json").write_text("{", "utf-8")
    with pytest.raises(LimnerError, match=r"its key\.json is damaged"):
        Store.open(tmp_path, "latents", KEY)
    (folder / "key.json").unlink()
    with pytest.raises(LimnerError, match=r"its key\.json is missing"):
        Store.open(tmp_path, "latents", KEY)


@pytest.mark.parametrize("damage", ["cut", "longer", "header", "empty"])
def test_a_damaged_shard_is_moved_aside_and_its_rows_are_made_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = filled(tmp_path).folder
    before = contents(folder)
    path = sorted(folder.glob("shard-*"))[1]
    good = path.read_bytes()
    bad = {"cut": good[:-5], "longer": good + b"x", "header": b"\xff" * 8 + good[8:], "empty": b""}
    path.write_bytes(bad[damage])
    store, maker = Store.open(tmp_path, "latents", KEY), Maker()
    assert len(store) < 20
    assert str(path) in caplog.messages[0]
    fill(store, ids_of(20), maker, 8, 3)
    assert len(maker.asked) in (4, 8)
    assert contents(folder) == before | {path.with_suffix(".damaged").name: bad[damage]}


# Kills, several processes, full disks

WORKER = textwrap.dedent(
    """
    import sys, time
    import numpy as np, torch
    from pathlib import Path
    from limner.data.precomputed import fill as store_writing
    from limner.data.precomputed.store import Store
    from limner.data.precomputed.fill import fill

    folder, pause, tag = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    store_writing.POLL = 0.05
    ids = np.random.default_rng(0).integers(0, 256, (40, 16), dtype=np.uint8)

    def make(indices):
        time.sleep(pause)
        with open(folder / f"made-{tag}", "a") as file:
            file.writelines(f"{i}\\n" for i in indices)
        return [torch.full((1, 64), float(i), dtype=torch.float16) for i in indices]

    fill(Store.open(folder, "latents", {"size": 1}), ids, make, 8, 2)
    """
)


def worker(folder: Path, pause: float, tag: str = "") -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORKER, str(folder), str(pause), tag]
    return subprocess.Popen(command, env=environment)


def made(folder: Path) -> list[int]:
    return [int(n) for path in folder.glob("made-*") for n in path.read_text().split()]


def only_store(folder: Path) -> dict[str, bytes]:
    (store,) = folder.glob("latents-*")
    return contents(store)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    assert worker(folder, 0).wait() == 0
    return only_store(folder)


def test_killed_half_way_it_goes_on_and_the_store_is_the_same_to_the_byte(
    tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    for wanted in (3, 11, 12, 25):  # rows after which it is killed
        process = worker(tmp_path, 0.03)
        while len(made(tmp_path)) < wanted and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        assert process.wait() in (-signal.SIGKILL, 1)
    assert worker(tmp_path, 0).wait() == 0
    assert only_store(tmp_path) == uninterrupted
    # At most the batch that a kill fell into is made twice.
    assert sorted(set(made(tmp_path))) == list(range(40))
    assert len(made(tmp_path)) <= 40 + 4 * 2


def test_what_a_kill_left_beside_a_finished_shard_is_cleaned_up(
    tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    assert worker(tmp_path, 0).wait() == 0
    store = Store.open(tmp_path, "latents", {"size": 1})
    shards = sorted(store.folder.glob("*.safetensors"))
    shards[0].with_suffix(".2.partial").write_bytes(b"whole batches")
    shards[0].with_suffix(".lock").write_bytes(b"")
    shards[1].unlink()  # there is something left to do
    assert worker(tmp_path, 0).wait() == 0
    assert only_store(tmp_path) == uninterrupted


def test_a_batch_that_was_written_in_part_is_cut_off(
    tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    class Killed(Exception):
        pass

    ids, store = ids_of(40), Store.open(tmp_path, "latents", {"size": 1})
    asked: list[int] = []

    def make(indices: list[int]) -> list[torch.Tensor | str]:
        if len(asked) >= 12:
            raise Killed
        asked.extend(indices)
        return [torch.full((1, 64), float(i), dtype=torch.float16) for i in indices]

    for damage in (b"\x10", b"\x10" * 30):
        with pytest.raises(Killed):
            fill(store, ids, make, 8, 2)
        (partial,) = store.folder.glob("*.partial")
        with open(partial, "ab") as file:
            file.write(damage)
        asked[:] = asked[:10]
    asked.clear()
    assert worker(tmp_path, 0).wait() == 0
    assert only_store(tmp_path) == uninterrupted


def test_processes_share_the_work_and_make_the_same_store(
    tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    processes = [worker(tmp_path, 0.02, str(n)) for n in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert only_store(tmp_path) == uninterrupted
    assert sorted(made(tmp_path)) == list(range(40))


def test_a_full_disk_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, write = Store.open(tmp_path, "latents", KEY), store_writing._write_shard
    written: list[Path] = []

    def full(*arguments: Any) -> None:
        if written:
            raise OSError(28, "No space left on device")
        write(*arguments)
        written.append(arguments[3])

    monkeypatch.setattr(store_writing, "_write_shard", full)
    with pytest.raises(LimnerError, match=r"No space left on device: the .*; what was.*cache"):
        fill(store, ids_of(20), Maker(), 8, 3)
    monkeypatch.undo()
    again, maker = Store.open(tmp_path, "latents", KEY), Maker()
    assert len(again) == 8
    fill(again, ids_of(20), maker, 8, 3)
    assert maker.asked == list(range(16, 20))  # the second chunk's batches had been kept
    with pytest.raises(LimnerError, match=r"GiB are needed in .* are free"):
        check_space(tmp_path, 2**60)


def test_values_of_different_kinds_are_refused(tmp_path: Path) -> None:
    rows: list[torch.Tensor | str] = [torch.zeros(1, 2), torch.zeros(1, 2).half()]
    with pytest.raises(LimnerError, match="values of different kinds cannot share"):
        fill(Store.open(tmp_path, "latents", KEY), ids_of(2), lambda _: rows, 8, 8)


def test_a_shard_that_cannot_be_opened_now_is_not_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = filled(tmp_path).folder
    before = contents(folder)

    def busy(*_: Any) -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("builtins.open", busy)
    with pytest.raises(LimnerError, match=r"cannot be read: Too many open files"):
        Store(folder, KEY)
    monkeypatch.undo()
    assert contents(folder) == before


def test_an_error_in_making_is_not_swallowed(tmp_path: Path) -> None:
    def make(indices: list[int]) -> list[torch.Tensor | str]:
        raise RuntimeError("out of coffee")

    with pytest.raises(RuntimeError, match="out of coffee"):
        fill(Store.open(tmp_path, "latents", KEY), ids_of(3), make, 8, 3)


# Many rows

RESIDENT = textwrap.dedent(
    """
    import json, sys
    import numpy as np, psutil
    from pathlib import Path
    from limner.data.precomputed.store import Store

    store = Store.open(Path(sys.argv[1]), "latents", {"size": 1})
    for position in np.random.default_rng(0).integers(0, len(store), 5000):
        store.read(int(position))
    print(psutil.Process().memory_info().rss)
    """
)


def test_resident_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    resident = []
    for count in (1_000, 100_000):
        folder = tmp_path / str(count)
        store = Store.open(folder, "latents", {"size": 1})
        row = torch.zeros(1, 4, 4, 4, dtype=torch.float16)
        fill(store, ids_of(count), lambda some, row=row: [row] * len(some), 20_000, 20_000)
        command = [sys.executable, "-c", RESIDENT, str(folder)]
        resident.append(int(subprocess.run(command, capture_output=True, check=True).stdout))
    assert resident[1] < 1.5 * resident[0]


def test_the_key_is_readable_and_in_every_shard(tmp_path: Path) -> None:
    folder = filled(tmp_path).folder
    assert json.loads((folder / "key.json").read_text("utf-8")) == KEY
    for path in folder.glob("shard-*.safetensors"):
        raw = path.read_bytes()
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        assert json.loads(header["__metadata__"]["about"])["key"] == KEY
