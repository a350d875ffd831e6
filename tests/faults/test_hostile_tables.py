"""Tables from strangers: they read no file of this machine, and damage costs its own rows."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_hub import dataset_hub
from emoji_formats import SIDE, emoji
from PIL import Image
from spoilt_parquet import parquet, spoil

from limner.config import load_config
from limner.data.dataset import ImageDataset, ImageError
from limner.data.formats import parquet_rows
from limner.data.formats.arrow import DatasetImages
from limner.data.formats.hub import _downloaded_to
from limner.data.open import open_image_dataset
from limner.data.regular_files import MAX_SIDECAR_BYTES
from limner.errors import LimnerError

FEATURES = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})


def opened(path: Path, *words: str) -> ImageDataset:
    cache = f"cache.folder='{path.parent / 'cache'}'"
    return open_image_dataset(load_config(None, [f"data.dataset_path='{path}'", cache, *words]))


def saved(folder: Path, paths: list[str]) -> Path:
    """What a stranger can write by hand: a table with paths where pictures should be."""
    rows = [{"bytes": None, "path": path} for path in paths]
    rows.append({"bytes": emoji()[0].data, "path": "inside.png"})
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table(
        {
            "image": pa.array(rows, struct),
            "text": [f"row {i}" for i in range(len(rows))],
        }
    ).replace_schema_metadata(
        {b"huggingface": json.dumps({"info": {"features": FEATURES.to_dict()}}).encode()}
    )
    folder.mkdir(parents=True)
    path = str(folder / "data-00000-of-00001.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    state = {
        "_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "0" * 16,
        "_format_columns": None, "_format_kwargs": {}, "_format_type": None,
        "_output_all_columns": False, "_split": None,
    }  # fmt: skip
    (folder / "state.json").write_text(json.dumps(state))
    about = {"features": FEATURES.to_dict(), "builder_name": "imagefolder"}
    (folder / "dataset_info.json").write_text(json.dumps(about))
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="devices and links are of POSIX")
def test_a_saved_data_set_reads_no_file_outside_of_it(tmp_path: Path) -> None:
    private = tmp_path / "private" / "diary.png"
    private.parent.mkdir()
    private.write_bytes(emoji()[3].data)
    folder = tmp_path / "set"
    paths = [
        str(private), "../private/diary.png", "link.png", "/dev/zero", "/etc/passwd",
        "/proc/self/environ", "http://x/y.png", "zip://a.png::/etc/x.zip", "pipe.png", "gone.png",
        "a\0b.png", "own.png", "", str(folder / "own.png"),
    ]  # fmt: skip
    saved(folder, paths)
    (folder / "link.png").symlink_to(private)
    (folder / "own.png").write_bytes(emoji()[4].data)
    os.mkfifo(folder / "pipe.png")
    found = opened(folder)
    assert [row.captions[0] for row in found.rows] == ["row 11", "row 13", "row 14"]
    assert np.array_equal(found.load(found.rows[0], SIDE), emoji()[4].pixels)
    reasons = [row.reason for row in found.refused]
    assert len(reasons) == 12
    wanted = (
        "leads out of the folder", "leads out of the folder", "a link that leads out",
        "leads out of the folder", "leads out of the folder", "leads out of the folder",
        "only a URL", "only a URL", "not a regular file", "is not there", "NUL", "no picture",
    )  # fmt: skip
    for number, (reason, part) in enumerate(zip(reasons, wanted, strict=True)):
        row = number + (number > 10)
        assert reason.startswith(f"row {row}: ")
        assert part in reason
    allowed = opened(folder, f"data.allowed_paths='{private.parent}'")
    assert [row.captions[0] for row in allowed.rows][:3] == ["row 0", "row 1", "row 2"]
    assert np.array_equal(allowed.load(allowed.rows[0], SIDE), emoji()[3].pixels)


def test_a_table_without_a_folder_names_no_files() -> None:
    rows: list[Any] = [{"bytes": None, "path": "/etc/x.png"}]
    rows.append({"bytes": emoji()[0].data, "path": None})
    table = datasets.Dataset.from_dict({"image": rows, "text": ["a", "b"]}, FEATURES)
    found = DatasetImages(table, "made up")
    assert [row.captions for row in found.rows] == [("b",)]
    [refused] = found.refused
    assert "a table without its own folder may not refer to files" in refused.reason


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_snapshot_of_the_hubs_cache_consists_of_links_and_is_read(tmp_path: Path) -> None:
    """As huggingface_hub keeps it: snapshots/<commit>/x.png -> ../../blobs/<hash>."""
    repository = tmp_path / "datasets--someone--emoji"
    snapshot = repository / "snapshots" / ("0a" * 20)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    lines = []
    for number, one in enumerate(emoji()[:4]):
        (repository / "blobs" / f"{number:064x}").write_bytes(one.data)
        (snapshot / one.name).symlink_to(f"../../blobs/{number:064x}")
        lines.append(json.dumps({"file_name": one.name, "text": one.captions[0]}))
    (tmp_path / "private.png").write_bytes(emoji()[7].data)
    (snapshot / "stolen.png").symlink_to(tmp_path / "private.png")
    lines.append(json.dumps({"file_name": "stolen.png", "text": "stolen"}))
    (snapshot / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = opened(snapshot, "data.format=datasets")
    assert [row.key for row in found.rows] == [one.name for one in emoji()[:4]]
    assert np.array_equal(found.load(found.rows[2], SIDE), emoji()[2].pixels)
    [refused] = found.refused
    assert "a link that leads out" in refused.reason


def test_where_a_set_of_the_hub_may_have_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    table = datasets.Dataset.from_dict({"text": ["a"]})
    table.info.builder_name = "parquet"
    folder, allowed = _downloaded_to(table, "someone/emoji")
    assert folder.name == "datasets--someone--emoji"
    assert allowed == []
    table.info.builder_name = "imagefolder"  # whose tables are made from files, by the package
    assert _downloaded_to(table, "someone/emoji")[1] == [
        Path(datasets.config.EXTRACTED_DATASETS_PATH)
    ]


README = "---\nconfigs:\n- config_name: default\n  data_files: {}\n---\n"


@pytest.mark.parametrize("written", ["../private/x.parquet", "{private}/*.parquet"])
def test_a_readme_cannot_have_other_files_read(written: str, tmp_path: Path) -> None:
    """The package datasets reads what `data_files` in a set's README.md says, wherever it is."""
    private = tmp_path / "private"
    private.mkdir()
    parquet(private / "x.parquet", 0, 8)
    folder = tmp_path / "set"
    folder.mkdir()
    parquet(folder / "own.parquet", 8, 8)
    (folder / "README.md").write_text(README.format(written.format(private=private)))
    with pytest.raises(LimnerError, match=r"README\.md refers to .*x\.parquet, which is not a"):
        opened(folder, "data.format=datasets")
    (folder / "README.md").write_text(README.format("'*.parquet'"))
    assert len(opened(folder, "data.format=datasets").rows) == 8
    (folder / "README.md").write_text(README.format(written.format(private=private)))
    allowed = opened(folder, "data.format=datasets", f"data.allowed_paths='{private}'")
    assert [row.captions[0] for row in allowed.rows] == [f"row {n}" for n in range(8)]


def test_a_readme_of_the_hub_cannot_have_files_of_this_machine_read(tmp_path: Path) -> None:
    private = parquet(tmp_path / "private.parquet", 0, 8)
    own = parquet(tmp_path / "own.parquet", 8, 8).read_bytes()
    program = (
        "from limner.config import load_config;"
        "from limner.data.open import open_image_dataset;"
        "config = load_config(None, ['data.dataset_name=someone/emoji']);"
        "print(len(open_image_dataset(config).rows))"
    )
    cases = ((f"'{private}'", "relative paths to the dataset repository root"), ("'*'", "8"))
    for number, (written, wanted) in enumerate(cases):
        files = {"README.md": README.format(written).encode(), "own.parquet": own}
        with dataset_hub("someone/emoji", files) as address:
            there = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / str(number))}
            done = subprocess.run(
                [sys.executable, "-c", program], env=there, capture_output=True, text=True,
                timeout=120,
            )  # fmt: skip
        assert wanted in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["../private/data-00000-of-00001.arrow", "/private.arrow", 7, ""])
def test_a_saved_set_cannot_name_other_tables(name: object, tmp_path: Path) -> None:
    saved(tmp_path / "private", [])
    folder = saved(tmp_path / "set", [])
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"] = [{"filename": name}]
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(LimnerError, match="is outside the folder and is not read"):
        opened(folder)
    (folder / "state.json").unlink()
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["../private"]}))
    with pytest.raises(LimnerError, match=r"refers to \.\./private, which is outside"):
        opened(folder, "data.dataset_split=../private")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are of POSIX")
@pytest.mark.parametrize(
    "name",
    ["dataset_dict.json", "dataset_info.json", "data-00000-of-00001.arrow"],
)
def test_a_saved_set_has_no_pipe_read(name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "set", [])
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    # Who would read it finds it empty, and does not wait.
    threading.Thread(target=(folder / name).write_bytes, args=(b"",), daemon=True).start()
    with pytest.raises(LimnerError, match=rf"{name} is not read: it is not a regular file"):
        opened(folder, "data.format=datasets")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are of POSIX")
def test_nor_has_a_folder_that_the_package_reads(tmp_path: Path) -> None:
    parquet(tmp_path / "own.parquet", 0, 8)
    readme = tmp_path / "README.md"
    os.mkfifo(readme)
    threading.Thread(target=readme.write_bytes, args=(b"",), daemon=True).start()
    with pytest.raises(LimnerError, match=r"README\.md is not read: it is not a regular file"):
        opened(tmp_path, "data.format=datasets")


@pytest.mark.parametrize("name", ["dataset_dict.json", "state.json", "dataset_info.json"])
def test_what_tells_of_a_saved_set_is_read_up_to_a_size(name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "set", [])
    with (folder / name).open("ab") as file:
        file.truncate(MAX_SIDECAR_BYTES + 1)  # takes no room on the disk
    with pytest.raises(LimnerError, match=rf"{name} is not read: it has 16,777,217 bytes"):
        opened(folder, "data.format=datasets")


# Offsets that lie


def lying(folder: Path, column: str) -> Path:
    """A saved set of three chunks, in the second of which an offset leads far out of the buffer."""
    rows = [{"bytes": one.data, "path": one.name} for one in emoji()]
    table = datasets.Dataset.from_dict(
        {"image": rows, "text": [one.captions[0] for one in emoji()]}, FEATURES
    )
    table.save_to_disk(str(folder))
    (file,) = folder.glob("*.arrow")
    whole = pa.ipc.open_stream(file.read_bytes()).read_all()
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, whole.schema) as writer:
        for first in range(0, len(whole), 8):
            writer.write_table(whole.slice(first, 8).combine_chunks())
    data = bytearray(file.read_bytes())
    second = pa.ipc.open_stream(file.read_bytes()).read_all().column(column).chunk(1)
    array = second if column == "text" else second.field("bytes")
    offsets = array.buffers()[1].to_pybytes()
    place = data.find(offsets[: 4 * 9])
    assert place > 0
    data[place + 4 * 3 : place + 4 * 4] = (2**30).to_bytes(4, "little")
    file.write_bytes(bytes(data))
    return folder


READ = """
import sys
from limner.config import load_config
from limner.data.open import open_image_dataset
found = open_image_dataset(load_config(None, [f"data.dataset_path='{sys.argv[1]}'"]))
for row in found.rows:
    found.load(row, 16)
print(len(found.rows), [(r.key, r.reason) for r in found.refused])
"""


@pytest.mark.parametrize("column", ["text", "image"])
def test_offsets_that_lie_cost_their_rows_and_not_the_process(column: str, tmp_path: Path) -> None:
    folder = lying(tmp_path / "set", column)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(folder)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = opened(folder)
    assert len(found.rows) == len(emoji()) - 8
    assert [row.key for row in found.rows][8:10] == [one.name for one in emoji()[16:18]]
    [refused] = found.refused
    assert refused.key == "rows 8 to 15"
    assert "the file is damaged there. Download or write it again" in refused.reason
    table = datasets.load_from_disk(str(folder)).select([1, 9])
    with pytest.raises(LimnerError, match="the table is damaged"):
        DatasetImages(table, "made up")


# Parquet


def test_a_damaged_page_of_captions_costs_its_row_group_and_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    parquet(folder / "a.parquet", 0, 12)
    spoil(parquet(folder / "b.parquet", 12, 12), "text", 1)
    found = opened(folder)
    assert [row.captions[0] for row in found.rows] == [
        f"row {n}" for n in range(24) if not 16 <= n < 20
    ]
    [refused] = found.refused
    assert refused.key == "b.parquet/(rows 4 to 7)"
    assert "b.parquet: rows 4 to 7 cannot be read" in refused.reason
    for row in found.rows:
        assert found.load(row, SIDE).shape == (SIDE, SIDE, 3)


def test_a_damaged_page_of_pictures_is_met_by_its_rows_only(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", 0, 12, compression="none")
    spoil(path, "image.bytes", 1)
    found = opened(path)
    assert len(found.rows) == 12
    for number, row in enumerate(found.rows):
        if 4 <= number < 8:
            for _ in range(2):
                with pytest.raises(ImageError, match=r"a\.parquet, row group 1: its pictures"):
                    found.load(row, SIDE)
        else:
            assert np.array_equal(found.load(row, SIDE), emoji()[number].pixels)


@pytest.mark.parametrize("name", ["a.parquet", "b.parquet"])
def test_a_file_that_is_no_parquet_costs_no_other(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    parquet(folder / "a.parquet", 0, 12)
    parquet(folder / "b.parquet", 12, 12)
    whole = (folder / name).read_bytes()
    for damage in (whole[:-40], b"no parquet", b""):
        (folder / name).write_bytes(damage)
        found = opened(folder)
        assert len(found.rows) == 12
        [refused] = found.refused
        assert refused.key == f"{name}/(the whole file)"
        assert "cannot be read as Parquet" in refused.reason


def test_a_damaged_table_of_paths_costs_its_row_group(tmp_path: Path) -> None:
    for one in emoji()[:12]:
        (tmp_path / one.name).write_bytes(one.data)
    rows = [{"file_name": one.name, "text": f"row {n}"} for n, one in enumerate(emoji()[:12])]
    path = tmp_path / "t.parquet"
    options = {"row_group_size": 4, "use_dictionary": False, "write_page_checksum": True}
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    spoil(path, "text", 1)
    found = opened(path)
    assert [row.captions[0] for row in found.rows] == [
        f"row {n}" for n in (0, 1, 2, 3, 8, 9, 10, 11)
    ]
    [refused] = found.refused
    assert refused.reason.startswith("t.parquet: rows 5 to 8 cannot be read")


def test_a_row_group_that_unpacks_to_too_much_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet(tmp_path / "a.parquet", 0, 8)
    monkeypatch.setattr(parquet_rows, "MAX_GROUP_BYTES", 100)
    with pytest.raises(LimnerError, match=r"bytes in one row group, more than the maximum of 100"):
        opened(path)


def test_text_in_parquet_that_is_not_utf_8_is_refused_by_row(tmp_path: Path) -> None:
    for one in emoji()[:3]:
        (tmp_path / one.name).write_bytes(one.data)
    words = pa.array([b"good", "Äpfel".encode("cp1252"), "红".encode()], pa.binary())
    table = pa.table(
        {
            "file_name": [one.name for one in emoji()[:3]],
            "text": pa.Array.from_buffers(pa.string(), 3, words.buffers()),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    found = opened(tmp_path / "t.parquet")
    assert [row.captions for row in found.rows] == [("good",), ("红",)]
    [refused] = found.refused
    assert refused.key == emoji()[1].name
    assert "byte 0xc4 is not valid UTF-8" in refused.reason


def test_what_prepare_writes_has_checksums(tmp_path: Path) -> None:
    from limner.data.convert.convert import prepare

    for one in emoji()[:4]:
        (tmp_path / one.name).write_bytes(one.data)
        (tmp_path / one.name).with_suffix(".txt").write_text("a", encoding="utf-8")
    prepare("auto", tmp_path, tmp_path.parent / "out", to="parquet")
    (path,) = (tmp_path.parent / "out").rglob("*.parquet")
    data = bytearray(path.read_bytes())
    place = data.find(emoji()[0].data[40:60])
    data[place] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(path, page_checksum_verification=True).read()
    with Image.open(tmp_path / emoji()[0].name) as image:
        assert image.size == (SIDE, SIDE)
