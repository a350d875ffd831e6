"""Looking for data: links are followed once; what is the system's or Limner's is passed over."""

import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from limner.apps.captioning.caption import images_to_caption
from limner.config import load_config
from limner.data.folder_walk import FolderWalk, composed
from limner.data.formats.folders import FolderImages
from limner.data.open import open_image_dataset
from limner.errors import LimnerError
from limner.files.output_folders import is_run_folder, kind_of_output
from limner.files.system_names import is_system_path

links = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")


def pair(folder: Path, name: str, caption: str | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    level = sum(name.encode()) % 256
    Image.new("RGB", (4, 4), (level, level, level)).save(folder / f"{name}.png")
    (folder / f"{name}.txt").write_text(caption or f"caption of {name}", encoding="utf-8")


def captions(folder: Path) -> dict[str, tuple[str, ...]]:
    return {row.key: row.captions for row in FolderImages(folder).rows}


@links
def test_linked_folders_are_followed_and_each_real_folder_once(tmp_path: Path) -> None:
    data, disk = tmp_path / "data", tmp_path / "other disk"
    pair(data / "b", "own")
    pair(disk / "holiday", "beach")
    pair(disk / "holiday" / "rome", "forum")
    (data / "a").symlink_to(disk / "holiday")
    (data / "again").symlink_to(disk / "holiday" / "rome")
    (data / "twice").symlink_to(data / "b")
    (data / "loop").symlink_to(data)
    (data / "b" / "up").symlink_to(data / "b")
    (data / "gone").symlink_to(tmp_path / "gone")
    (data / "knot").symlink_to("knot")
    found = FolderImages(data)
    assert [row.key for row in found.rows] == ["b/own.png", "a/beach.png", "a/rome/forum.png"]
    assert found.refused == []
    assert [found.load(row, 4)[0, 0, 0] for row in found.rows] == [
        sum(name.encode()) % 256 for name in ("own", "beach", "forum")
    ]


@links
def test_a_folder_that_two_links_lead_to_is_read_once(tmp_path: Path) -> None:
    """The first link leads into what the second leads to."""
    data, disk = tmp_path / "data", tmp_path / "disk"
    pair(disk / "holiday", "beach")
    pair(disk / "holiday" / "rome", "forum")
    data.mkdir()
    (data / "a").symlink_to(disk / "holiday" / "rome")
    (data / "b").symlink_to(disk / "holiday")
    assert list(captions(data)) == ["a/forum.png", "b/beach.png"]


@links
def test_a_link_that_leads_above_the_data_is_not_followed_and_said(tmp_path: Path) -> None:
    pair(tmp_path / "home" / "photos", "mine")
    pair(tmp_path / "home" / "private", "secret")
    (tmp_path / "home" / "photos" / "home").symlink_to(tmp_path / "home")
    found = FolderImages(tmp_path / "home" / "photos")
    assert [row.key for row in found.rows] == ["mine.png"]
    assert "Skipped: home (links that point to a parent folder of the data)." in found.description


@links
def test_the_order_without_links_is_as_ever(tmp_path: Path) -> None:
    for name in ("c/x/1", "a/2", "3", "b/y/z/4", "b/5"):
        path = tmp_path / name
        pair(path.parent, path.name)
    walked = [within for _, within, _ in FolderWalk(tmp_path)]
    assert walked == ["", "a", "b", "b/y", "b/y/z", "c", "c/x"]
    assert list(captions(tmp_path)) == ["3.png", "a/2.png", "b/5.png", "b/y/z/4.png", "c/x/1.png"]


@pytest.mark.parametrize(
    "name",
    [
        "$RECYCLE.BIN", "#recycle", "lost+found", "@eaDir", "thumbnails", "Thumbnails", "__MACOSX",
        ".ipynb_checkpoints", "System Volume Information", ".Trash-1000",
    ],
)  # fmt: skip
def test_folders_of_systems_are_passed_over_and_said_once(name: str, tmp_path: Path) -> None:
    pair(tmp_path, "good")
    pair(tmp_path / "deep", "too")
    pair(tmp_path / name, "trash")
    pair(tmp_path / "deep" / name / "within", "trash2")
    found = FolderImages(tmp_path)
    assert [row.key for row in found.rows] == ["good.png", "deep/too.png"]
    assert found.refused == []
    both = ", ".join(sorted([name, f"deep/{name}"]))
    assert f"Skipped: {both} (of the system)." in found.description


def test_files_of_systems_are_no_pictures(tmp_path: Path) -> None:
    pair(tmp_path, "good")
    for name in ("._good.png", "._good.txt", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"of the system")
    found = FolderImages(tmp_path)
    assert [row.key for row in found.rows] == ["good.png"]
    assert found.refused == []
    assert "Skipped" not in found.description


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("a/b.png", False), ("./a/../b.png", False), ("__MACOSX/a/b.png", True),
        ("a/._b.png", True), ("a/@eaDir/b.png", True), (".hidden/b.png", True),
    ],
)  # fmt: skip
def test_paths_of_systems(path: str, wanted: bool) -> None:
    assert is_system_path(path) is wanted


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("a training run", ["config.yaml", "log.jsonl"]),
        ("a training run", ["config.yaml", "checkpoint-1000/model.pt"]),
        ("a checkpoint", ["config.yaml", "training_state.json"]),
        ("an evaluation", ["evaluation.json", "pictures/x.png"]),
        ("a data check", ["check.json", "problems.jsonl"]),
        ("an exported model", ["model_index.json", "transformer/config.json"]),
        ("a store of latents or embeddings", ["key.json", "shard-00ff.safetensors"]),
    ],
)
def test_what_limner_wrote_is_never_read_as_data(
    kind: str, names: list[str], tmp_path: Path
) -> None:
    pair(tmp_path, "good")
    for name in names:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes(b"")
    pair(tmp_path / "out" / "samples", "drawn")
    assert kind_of_output(tmp_path / "out") == kind
    assert kind_of_output(tmp_path) is None
    assert is_run_folder(tmp_path / "out") is (kind in ("a training run", "a checkpoint"))
    found = FolderImages(tmp_path)
    assert [row.key for row in found.rows] == ["good.png"]
    assert f"Skipped: out ({kind} written by Limner)." in found.description


def test_a_folder_that_cannot_be_read_is_said(tmp_path: Path, monkeypatch) -> None:
    pair(tmp_path, "good")
    (tmp_path / "shut").mkdir()
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert "shut (cannot be read: Permission denied)" in FolderImages(tmp_path).description


def test_composed_and_decomposed_names_are_one() -> None:
    assert composed("cafe\u0301.png") == composed("caf\xe9.png") == "caf\xe9.png"


def test_a_run_that_is_named_as_data_is_refused_unless_its_format_is_said(tmp_path: Path) -> None:
    pair(tmp_path / "run", "drawn")
    for name in ("config.yaml", "log.jsonl"):
        (tmp_path / "run" / name).touch()
    with pytest.raises(
        LimnerError, match=r"run holds a training run written by Limner, which is not"
    ):
        FolderImages(tmp_path / "run")
    found = FolderImages(tmp_path / "run", kind="folder")
    assert [row.key for row in found.rows] == ["drawn.png"]


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.tar", "data/t.parquet"])
def test_what_macos_puts_beside_a_file_hides_it_from_nobody(name: str, tmp_path: Path) -> None:
    from emoji_formats import parquet_of_bytes, table_csv, tars

    build = {"csv": table_csv, "parquet": parquet_of_bytes, "tar": tars}[name.rpartition(".")[2]]
    folder = tmp_path / "data"
    if name.startswith("data/"):
        build(folder / "data")
    else:
        build(folder)
    for path in [p for p in folder.rglob("*") if p.is_file() and p.parent.name != "images"]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7of the system")
    words = [f"data.dataset_path='{folder}'", f"cache.folder='{tmp_path / 'cache'}'"]
    found = open_image_dataset(load_config(None, words))
    assert len(found.rows) == 24
    assert found.refused == []


@links
def test_captions_are_written_through_links_and_into_no_run(tmp_path: Path) -> None:
    pair(tmp_path / "disk", "far")
    pair(tmp_path / "data", "near")
    pair(tmp_path / "data" / "run", "drawn")
    (tmp_path / "data" / "run" / "config.yaml").touch()
    (tmp_path / "data" / "run" / "log.jsonl").touch()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "disk")
    for path in tmp_path.rglob("*.txt"):
        path.unlink()
    assert images_to_caption(tmp_path / "data") == (["near.png", "link/far.png"], 0)
