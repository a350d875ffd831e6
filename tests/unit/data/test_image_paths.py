"""One rule for the paths that data name: below their own folder, regular, of a sane size."""

import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from limner.config import load_config
from limner.data import regular_files
from limner.data.dataset import ImageDataset, ImageError
from limner.data.formats.folders import FolderImages
from limner.data.image_paths import ImagePaths
from limner.data.images import decode
from limner.data.open import open_image_dataset
from limner.errors import LimnerError

posix = pytest.mark.skipif(sys.platform == "win32", reason="devices and links are of POSIX")


def image(path: Path, level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (level, level, level)).save(path)
    return path


def table(folder: Path, *images: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"image": image, "text": f"row {n}"} for n, image in enumerate(images)]
    (folder / "metadata.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def opened(path: Path, *words: str) -> ImageDataset:
    return open_image_dataset(load_config(None, [f"data.dataset_path='{path}'", *words]))


def test_an_absolute_path_into_the_folder_is_a_relative_one(tmp_path: Path) -> None:
    one = image(tmp_path / "data" / "a" / "one.png", 10)
    found = opened(table(tmp_path / "data", str(one), "a/../a/one.png"))
    assert [(row.key, row.captions) for row in found.rows] == [("a/one.png", ("row 0", "row 1"))]
    assert found.refused == []


def test_a_path_that_leads_out_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    good, disk = image(tmp_path / "data" / "good.png"), tmp_path / "disk"
    away = [image(disk / "x" / "1.png", 77), image(tmp_path / "private" / "2.png")]
    data = table(tmp_path / "data", good.name, str(away[0]), "../disk/x/1.png", str(away[1]))
    found = opened(data)
    assert [row.key for row in found.rows] == ["good.png"]
    assert [row.key for row in found.refused] == [str(away[0]), "../disk/x/1.png", str(away[1])]
    for number, refused in enumerate(found.refused, start=2):
        assert refused.reason.startswith(
            f"metadata.json, row {number}: the path leads out of the folder {data}; "
        )
        assert "data.allowed_paths" in refused.reason
    found = opened(data, f"data.allowed_paths='{disk}'")
    key = away[0].as_posix()
    assert [(row.key, row.captions) for row in found.rows] == [
        ("good.png", ("row 0",)),
        (key, ("row 1", "row 2")),
    ]
    assert found.load(found.rows[1], 4)[0, 0, 0] == 77
    assert found.path(found.rows[1]) == away[0]
    assert [row.key for row in found.refused] == [str(away[1])]
    both = f"data.allowed_paths=['{disk}', '{tmp_path / 'private'}']"
    assert len(opened(data, both).rows) == 3


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("iVBORw0KGgo" + "A" * 400_197, r"\(400,208 characters\), longer than any path.*base64"),
        ("a\0b.png", "contains a NUL"),
        ("x" * 300 + ".png", "is not there"),  # longer than a name may be
        ("d" * 300 + "/x.png", "is not there"),
        ("file:///etc/x.png", "this is a URL"),
        ("~/x.png", "the folder '~' is not there"),
        (["a.png"], r"the path is \['a.png'\], not the name"),
        ({"bytes": "x" * 10_000}, "not the name of a picture file"),
    ],
)
def test_what_is_no_path_is_refused_in_a_short_sentence(
    path: object, reason: str, tmp_path: Path
) -> None:
    image(tmp_path / "good.png")
    [refused] = FolderImages(table(tmp_path, "good.png", path)).refused
    assert len(refused.reason) < 700
    assert len(refused.key) < 500
    refused.key.encode("utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limner.data.image_paths.MAX_PATH", 4096)
        import re

        assert re.search(reason, refused.reason)


def test_a_column_of_base64_prints_no_cell(tmp_path: Path) -> None:
    cell = "A" * 400_208
    (tmp_path / "t.csv").write_text(f"image,text\n{cell},a cat\n{cell},a dog\n", "utf-8")
    with pytest.raises(LimnerError) as caught:
        opened(tmp_path / "t.csv")
    assert len(str(caught.value)) < 1500
    assert "400,208 characters" in str(caught.value)


@posix
def test_only_regular_files_are_read(tmp_path: Path) -> None:
    image(tmp_path / "good.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "knot.png").symlink_to("knot.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "folder.png").mkdir()
    names = ("pipe.png", "zero.png", "knot.png", "gone.png", "folder.png")
    found = FolderImages(table(tmp_path, "good.png", *names))
    assert [row.key for row in found.rows] == ["good.png"]
    reasons = {row.key: row.reason for row in found.refused}
    assert set(reasons) == set(names)
    for name in names[:4]:
        assert "not a regular file" in reasons[name]
    assert "is not there" in reasons["folder.png"]
    for name in ("pipe.png", "zero.png"):  # put there after the rows were read
        with pytest.raises(ImageError, match="not a regular file"):
            decode(tmp_path / name, 16)


@posix
def test_a_link_in_a_circle_costs_no_other_row(tmp_path: Path) -> None:
    image(tmp_path / "images" / "good.png")
    (tmp_path / "images" / "loop").symlink_to("loop")
    found = FolderImages(table(tmp_path, "images/good.png", "images/loop/x.png"))
    assert [row.key for row in found.rows] == ["images/good.png"]
    [refused] = found.refused
    assert refused.key == "images/loop/x.png"


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="/proc is of Linux")
def test_files_of_the_kernel_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "x.png").symlink_to("/proc/self/environ")
    with pytest.raises(ImageError, match="empty"):
        decode(tmp_path / "x.png", 16)


@pytest.mark.parametrize("written", ["cafe\u0301", "caf\xe9"])
def test_composed_and_decomposed_paths_are_one(written: str, tmp_path: Path) -> None:
    """Metadata of one system, files of another: the key is what the file is called here."""
    for level, stem in enumerate(("cafe\u0301", "e\u0301t\u00e9/caf\xe9"), start=1):
        image(tmp_path / f"{stem}.png", 10 * level)
    if len(list(tmp_path.iterdir())) != 2:
        pytest.skip("this file system keeps names in a form of its own")
    folder = "\xe9t\xe9" if written == "caf\xe9" else "e\u0301te\u0301"
    found = FolderImages(table(tmp_path, f"{written}.png", f"{folder}/{written}.png"))
    assert [row.key for row in found.rows] == ["cafe\u0301.png", "e\u0301t\u00e9/caf\xe9.png"]
    assert [found.load(row, 4)[0, 0, 0] for row in found.rows] == [10, 20]
    assert found.refused == []


def test_a_pair_of_composed_and_decomposed_names(tmp_path: Path) -> None:
    image(tmp_path / "cafe\u0301.png")
    (tmp_path / "caf\xe9.txt").write_text("coffee", encoding="utf-8")
    found = FolderImages(tmp_path)
    assert [row.captions for row in found.rows] == [("coffee",)]


def test_a_file_of_an_absurd_size_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = image(tmp_path / "a.png")
    monkeypatch.setattr(regular_files, "MAX_IMAGE_BYTES", 20)
    with pytest.raises(ImageError, match=r"bytes, more than the maximum of 20 for a file"):
        decode(path, 16)
    (tmp_path / "a.txt").write_bytes(b"x" * (regular_files.MAX_CAPTION_BYTES + 1))
    image(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("good", encoding="utf-8")
    [refused] = FolderImages(tmp_path).refused
    assert refused.key == "a.png"
    assert "1,048,577 bytes, more than the maximum of 1,048,576" in refused.reason


@posix
def test_a_table_that_never_ends_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").symlink_to("/dev/zero")
    with pytest.raises(LimnerError, match=r"folder not found|not a regular file"):
        opened(tmp_path / "t.csv", "data.format=table")


@posix
def test_where_links_may_not_lead_out_the_file_itself_has_to_be_inside(tmp_path: Path) -> None:
    data, blobs = tmp_path / "snapshots" / "0a", tmp_path / "blobs"
    image(data / "own.png")
    (data / "inner.png").symlink_to(data / "own.png")
    (data / "away.png").symlink_to(image(tmp_path / "private.png"))
    (data / "blob.png").symlink_to(image(blobs / "1234.png"))
    (data / "folder").symlink_to(blobs)
    strict = ImagePaths(data, links=False)
    assert strict.find("own.png") == ("own.png", None)
    assert strict.find("inner.png") == ("inner.png", None)
    for name in ("away.png", "blob.png", "folder/1234.png"):
        key, reason = strict.find(name)
        assert key == name
        assert "a link that leads out of the folder" in str(reason)
    cache = ImagePaths(data, [blobs], links=False)
    assert cache.find("blob.png") == ("blob.png", None)
    assert cache.find("folder/1234.png") == ("folder/1234.png", None)
    assert cache.find("away.png")[1]
    assert ImagePaths(data).find("away.png") == ("away.png", None)


def test_captions_of_cub_are_not_read_elsewhere(tmp_path: Path) -> None:
    data = tmp_path / "CUB_200_2011"
    image(data / "images" / "1.Owl" / "a.png")
    (data / "text" / "1.Owl").mkdir(parents=True)
    (data / "text" / "1.Owl" / "a.txt").write_text("an owl\n")
    (tmp_path / "private.txt").write_text("a secret\n")
    image(tmp_path / "private.png")
    (data / "images.txt").write_text("1 1.Owl/a.png\n2 ../../private.png\n")
    found = opened(data)
    assert [row.captions for row in found.rows] == [("an owl",)]
    [refused] = found.refused
    assert "leads out of the folder" in refused.reason
