"""Any format becomes any layout: whole or not at all, with nothing lost."""

import json
import tarfile
from pathlib import Path
from typing import get_args

import datasets
import fsspec
import numpy as np
import pytest
from emoji_formats import COUNT, EXAMPLES, SIDE, emoji
from PIL import Image

import limner.files.atomic
from limner.cli import main
from limner.commands import prepare as commands
from limner.config import load_config
from limner.config.data import DataConfig
from limner.data.convert.convert import prepare
from limner.data.convert.writers import LAYOUTS, WRITERS, EncodedImage, Layout, MetadataWriter
from limner.data.dataset import ImageDataset
from limner.data.formats.folders import FolderImages
from limner.data.open import open_image_dataset
from limner.errors import LimnerError


def noise(path: Path, seed: int, kind: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(kind).save(path)


def beside(folder: Path, name: str, caption: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    return folder / name


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """a.jpg and b.png good, c.webp of another kind, d.png with transparency, e.jpg truncated."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for seed, name in enumerate(["a.jpg", "b.png", "c.webp", "e.jpg"]):
        noise(beside(folder, name, f"picture {name[0]}"), seed)
    noise(beside(folder, "d.png", "红苹果"), 9, "LA")
    (folder / "e.jpg").write_bytes((folder / "e.jpg").read_bytes()[:-200])
    return folder


def captions_json(rows: list[tuple[int, str, list[str]]]) -> str:
    return json.dumps(
        {
            "images": [{"id": number, "file_name": name} for number, name, _ in rows],
            "annotations": [
                {"id": 10 * number + i, "image_id": number, "caption": text}
                for number, _, texts in rows
                for i, text in enumerate(texts)
            ],
        }
    )


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    noise(folder / "train2017/000000000009.jpg", 0)
    noise(folder / "train2017/000000000025.jpg", 1)
    noise(folder / "val2017/000000000009.jpg", 2)
    train = [
        (9, "000000000009.jpg", ["A dog. ", "A brown dog.", "A dog."]),
        (25, "000000000025.jpg", ["A cat."]),
        (30, "000000000030.jpg", ["Gone."]),
        (31, "000000000025.jpg", []),
        (32, "../../outside.jpg", ["Hostile."]),
    ]
    (folder / "annotations/captions_train2017.json").write_text(captions_json(train))
    val = [(9, "000000000009.jpg", ["A bird."])]
    (folder / "annotations/captions_val2017.json").write_text(captions_json(val))
    (folder / "annotations/instances_val2017.json").write_text("not read")
    noise(tmp_path / "outside.jpg", 3)
    return folder


def test_custom_copies_good_files_and_writes_the_others_anew(source: Path, tmp_path: Path):
    output = tmp_path / "new" / "data"
    prepared = prepare("custom", source, output)
    assert json.loads((output / "metadata.json").read_text(encoding="utf-8")) == [
        {"image": "images/image_000001.jpg", "text": "picture a"},
        {"image": "images/image_000002.png", "text": "picture b"},
        {"image": "images/image_000003.png", "text": "picture c"},
        {"image": "images/image_000004.png", "text": "红苹果"},
    ]
    for new, old in (("image_000001.jpg", "a.jpg"), ("image_000002.png", "b.png")):
        assert (output / "images" / new).read_bytes() == (source / old).read_bytes()
    assert Image.open(output / "images/image_000004.png").mode == "RGB"
    before, after = FolderImages(source), FolderImages(output)
    kept = [row for row in before.rows if row.key != "e.jpg"]
    for old, new in zip(kept, after.rows, strict=True):
        assert np.array_equal(before.load(old, 10), after.load(new, 10))

    assert prepared.count == 4
    assert [row.key for row in prepared.refused] == ["e.jpg"]
    [refused] = json.loads((output / "refused.json").read_text(encoding="utf-8"))
    assert refused["key"] == "e.jpg"
    assert refused["reason"].startswith("the picture cannot be decoded")
    assert sorted(path.name for path in output.parent.iterdir()) == ["data"]


def test_coco_keeps_every_caption_and_names_what_it_refuses(coco: Path, tmp_path: Path):
    prepared = prepare("coco", coco, tmp_path / "data")
    rows = FolderImages(tmp_path / "data").rows
    assert [row.captions for row in rows] == [("A dog.", "A brown dog."), ("A cat.",), ("A bird.",)]
    texts = [row["text"] for row in json.loads((tmp_path / "data/metadata.json").read_text())]
    assert texts == [["A dog.", "A brown dog."], "A cat.", "A bird."]
    first = (coco / "train2017/000000000009.jpg").read_bytes()
    assert (tmp_path / "data/images/image_000001.jpg").read_bytes() == first
    last = (coco / "val2017/000000000009.jpg").read_bytes()
    assert (tmp_path / "data/images/image_000003.jpg").read_bytes() == last
    reasons = " | ".join(f"{row.key}: {row.reason}" for row in prepared.refused)
    for wanted in (
        "train2017/000000000030.jpg: captions_train2017.json, image 30: the picture file is not",
        "image 31: the list of captions is empty",
        "image 32: the path leads out of the folder",
        "image 9: the same picture and text",
    ):
        assert wanted in reasons
    assert len(prepared.refused) == 4


def test_coco_takes_the_captions_file_itself(coco: Path, tmp_path: Path):
    inside = prepare("coco", coco / "annotations/captions_val2017.json", tmp_path / "one")
    noise(tmp_path / "flat/x.jpg", 0)
    (tmp_path / "flat/captions.json").write_text(captions_json([(1, "x.jpg", ["A dog."])]))
    flat = prepare("coco", tmp_path / "flat/captions.json", tmp_path / "two")
    assert (inside.count, flat.count) == (1, 1)


def test_num_samples_counts_good_pictures_and_more_of_them_only_adds(tmp_path: Path):
    for i in range(12):
        noise(tmp_path / f"mine/{i}.png", i)
        beside(tmp_path / "mine", f"{i}.png", str(i))
    (tmp_path / "mine/3.png").write_bytes(b"")
    texts = []
    for count in (5, 11, 50):
        assert prepare("custom", tmp_path / "mine", tmp_path / f"{count}", count).count == min(
            count, 11
        )
        rows = json.loads((tmp_path / f"{count}/metadata.json").read_text())
        texts.append([row["text"] for row in rows])
    assert texts[0] == texts[1][:5] != ["0", "1", "10", "11", "2"]
    assert texts[1] == texts[2]


def test_an_output_in_use_is_left_as_it_is(source: Path, tmp_path: Path):
    for output in (source, source / "a.jpg"):
        with pytest.raises(LimnerError, match=r"already exists.*choose another --output"):
            prepare("custom", source, output)
    (tmp_path / "empty").mkdir()
    assert prepare("custom", source, tmp_path / "empty").count == 4


def test_a_killed_run_leaves_nothing_half_made_and_the_next_one_works(
    source: Path, tmp_path: Path, monkeypatch
):
    output = tmp_path / "data"
    add = MetadataWriter.add

    def dies(self: MetadataWriter, image: EncodedImage) -> None:
        if image.name == "image_000003":
            raise KeyboardInterrupt
        add(self, image)

    with monkeypatch.context() as patched:
        patched.setattr(MetadataWriter, "add", dies)
        # kill -9 runs no clean-up either
        patched.setattr(limner.files.atomic.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            prepare("custom", source, output)
    assert not output.exists()
    [unfinished] = tmp_path.glob(".data*")
    (unfinished / "images/image_000099.jpg").touch()
    prepare("custom", source, output)
    assert len(list((output / "images").iterdir())) == 4
    assert not unfinished.exists()


def test_a_full_disk_is_an_error_for_people(source: Path, tmp_path: Path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(LimnerError, match=r"data could not be written: No space left.*free space"):
        prepare("custom", source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_progress_reaches_the_end(source: Path, tmp_path: Path):
    seen = []
    prepare("custom", source, tmp_path / "data", on_progress=lambda *done: seen.append(done))
    assert seen == [(i, 5) for i in range(1, 6)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[]", "is not a COCO captions file"),
        ('{"images": []}', r"not a COCO captions file: 'annotations'.*must contain"),
        ('{"images": [{"id": 1}], "annotations": []}', "not a COCO captions file: 'file_name'"),
        ('{"images": [], "annotations": []}', "the metadata has no rows"),
        ("{", r"captions_x\.json, line 1, column 2"),
    ],
)
def test_bad_coco_files_say_what_is_wrong(tmp_path: Path, text, wanted):
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "captions_x.json").write_text(text)
    with pytest.raises(LimnerError, match=f"(?s){wanted}"):
        prepare("coco", tmp_path / "coco", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_what_cannot_be_prepared_says_what_to_do(source: Path, tmp_path: Path):
    with pytest.raises(LimnerError, match=r"no annotations/captions_\*\.json.*use the folder"):
        prepare("coco", source, tmp_path / "data")
    with pytest.raises(LimnerError, match=r"folder not found: .*gone .*--input"):
        prepare("coco", tmp_path / "gone", tmp_path / "data")
    with pytest.raises(LimnerError, match=r"it must be auto, custom, .* or parquet"):
        prepare("COCO", source, tmp_path / "data")
    with pytest.raises(LimnerError, match="--num_samples is 0"):
        prepare("custom", source, tmp_path / "data", 0)
    for path in source.glob("*.*g"):
        path.write_bytes(b"")
    (source / "c.webp").unlink()
    with pytest.raises(
        LimnerError, match=r"(?s)none of the 5 rows can be used.*4 x the file is empty"
    ):
        prepare("custom", source, tmp_path / "data")


def opened(path: Path, *words: str) -> ImageDataset:
    return open_image_dataset(load_config(None, [f"data.dataset_path='{path}'", *words]))


def members(folder: Path) -> list[tuple[str, bytes]]:
    """(name, content) of each member of all shards, in order."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                file = tar.extractfile(member)
                assert file is not None
                found.append((member.name, file.read()))
    return found


def same_pictures(images: ImageDataset) -> None:
    """They are the emoji: captions, pixels, and who is held out."""
    for place, (row, one) in enumerate(zip(images.rows, emoji(), strict=True)):
        assert row.captions == one.captions
        assert np.array_equal(images.load(row, SIDE), one.pixels)
        assert row.held_out is (place >= 16)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("to", "kind"),
    [
        *((to, "auto") for to in ("metadata", "imagefolder", "pairs", "webdataset", "parquet")),
        ("parquet", "datasets"),
    ],
)
def test_to_each_layout_and_back_nothing_is_lost(
    to: Layout, kind: str, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    source = EXAMPLES["coco"].build(tmp_path / "source")
    assert prepare("auto", source, tmp_path / to, to=to, shard_size="10").count == COUNT
    there = opened(tmp_path / to, f"data.format={kind}")
    assert there.refused == []
    same_pictures(there)
    prepare(kind, tmp_path / to, tmp_path / "back")
    same_pictures(opened(tmp_path / "back"))
    for path, one in zip(sorted((tmp_path / "back/images").iterdir()), emoji(), strict=True):
        assert path.read_bytes() == one.data


@pytest.mark.parametrize("name", EXAMPLES)
def test_from_each_format(name: str, tmp_path: Path):
    path = EXAMPLES[name].build(tmp_path / "source")
    words = EXAMPLES[name].settings
    prepared = prepare("auto", path, tmp_path / "data", overrides=words)
    assert (prepared.count, prepared.refused) == (COUNT, [])
    for row, one in zip(opened(tmp_path / "data").rows, emoji(), strict=True):
        assert row.captions == one.captions


def test_shards_are_what_the_ecosystem_writes(tmp_path: Path):
    source = EXAMPLES["coco"].build(tmp_path / "source")
    for name in ("one", "two"):
        prepare("auto", source, tmp_path / name, to="webdataset", shard_size="10")
    shards = sorted((tmp_path / "one").glob("*.tar"))
    assert [path.name for path in shards] == [f"shard-{n:06d}.tar" for n in range(3)]
    for path in shards:  # the same bytes whenever they are written
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    found = members(tmp_path / "one")
    assert len(found) == 3 * COUNT
    for place, one in enumerate(emoji()):
        (image, data), (text, caption), (about, more) = found[3 * place : 3 * place + 3]
        key = f"image_{place + 1:06d}"
        assert (image, text, about) == (f"{key}{one.name[-4:]}", f"{key}.txt", f"{key}.json")
        assert data == one.data
        assert caption.decode() == one.captions[0]
        held_out = place >= 16
        assert json.loads(more) == {"captions": list(one.captions), "held_out": held_out}
    with tarfile.open(shards[0]) as tar:
        assert {(m.mtime, m.uid, m.uname) for m in tar.getmembers()} == {(0, 0, "")}
        assert len(tar.getmembers()) == 30


def test_the_package_datasets_reads_shards_of_one_kind_of_picture(tmp_path: Path):
    for number, one in enumerate(emoji()):
        noise(beside(tmp_path / "mine", f"{number:02}.png", one.captions[0]), number)
    prepare("auto", tmp_path / "mine", tmp_path / "tars", to="webdataset", shard_size="9")
    files = [str(path) for path in sorted((tmp_path / "tars").glob("*.tar"))]
    table = datasets.load_dataset(
        "webdataset", data_files=files, split="train", cache_dir=str(tmp_path / "hf")
    )
    assert isinstance(table.features["png"], datasets.Image)
    assert table["txt"][:] == [one.captions[0] for one in emoji()]


def test_a_shard_ends_by_pictures_or_by_bytes(tmp_path: Path):
    for number in range(7):
        noise(beside(tmp_path / "mine", f"{number}.png", "x"), number)
    size = (tmp_path / "mine/0.png").stat().st_size
    assert size < 500 < 1000 < 3 * size  # a tar has two more files of each, and a block of each
    for to, pattern, of_1kb in (("webdataset", "*.tar", 7), ("parquet", "data/*.parquet", 4)):
        for shard_size, shards in (("3", 3), ("7", 1), ("1KB", of_1kb), ("1GiB", 1)):
            output = tmp_path / f"{to}-{shard_size}"
            prepare("auto", tmp_path / "mine", output, to=to, shard_size=shard_size)
            assert len(list(output.glob(pattern))) == shards
    for wrong in ("0", "many", "3 pictures", "-1"):
        with pytest.raises(LimnerError, match=r"--shard_size is .*\(1000\) or a size \(256MiB\)"):
            prepare("auto", tmp_path / "mine", tmp_path / "no", shard_size=wrong)


def test_the_parquet_shows_pictures_and_lists_to_datasets(tmp_path: Path):
    source = EXAMPLES["coco"].build(tmp_path / "source")
    prepare("auto", source, tmp_path / "data", to="parquet", shard_size="10")
    names = [path.name for path in sorted((tmp_path / "data/data").iterdir())]
    assert names == [f"train-{n:05d}-of-00003.parquet" for n in range(3)]
    table = datasets.load_dataset(
        str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "hf")
    )
    assert isinstance(table.features["image"], datasets.Image)
    assert table["captions"][:] == [list(one.captions) for one in emoji()]
    assert np.array_equal(np.array(table[5]["image"].convert("RGB")), emoji()[5].pixels)


@pytest.mark.parametrize("to", ["imagefolder", "pairs", "webdataset", "parquet"])
def test_in_every_layout_a_run_that_dies_leaves_nothing(
    to: Layout, source: Path, tmp_path: Path, monkeypatch
):
    def dies(self: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(WRITERS[to], "finish", dies)
        with pytest.raises(LimnerError, match="could not be written: No space left"):
            prepare("auto", source, tmp_path / "data", to=to)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
    assert prepare("auto", source, tmp_path / "data", to=to).count == 4


def test_the_command_says_what_was_read_and_takes_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = EXAMPLES["metadata.jsonl"].build(tmp_path / "source")
    words = ["--input", str(path), "--output", str(tmp_path / "data"), "--to", "pairs"]
    assert main(["prepare", *words, "data.caption_column=chinese", "--num-samples", "4"]) == 0
    said = capsys.readouterr().out
    assert "metadata.jsonl, columns file_name, chinese" in said
    assert f"4 pictures in {tmp_path / 'data'}" in said
    texts = {path.read_text(encoding="utf-8") for path in (tmp_path / "data").glob("*.txt")}
    assert texts < {one.captions[1] for one in emoji()}


def test_shards_are_taken_by_url_and_by_pattern(tmp_path: Path):
    far = fsspec.filesystem("memory")
    for number in range(2):
        folder = tmp_path / str(number)
        for name in "ab":
            noise(beside(folder, f"{name}.png", f"{name} of {number}"), ord(name) + number)
        prepare("auto", folder, tmp_path / f"made-{number}", to="webdataset")
        shard = (tmp_path / f"made-{number}" / "shard-000000.tar").read_bytes()
        far.pipe_file(f"/{tmp_path.name}/{number}.tar", shard)
        (tmp_path / f"{number}.tar").write_bytes(shard)
    wanted = ["a of 0", "a of 1", "b of 0", "b of 1"]
    for place, source in {
        "by-url": f"memory://{tmp_path.name}/{{0..1}}.tar",
        "by-pattern": str(tmp_path / "?.tar"),
    }.items():
        output = tmp_path / place
        words = ["prepare", "--input", source, "--output", str(output)]
        assert main([*words, f"cache.folder={tmp_path / 'cache'}"]) == 0
        rows = json.loads((output / "metadata.json").read_text(encoding="utf-8"))
        assert sorted(row["text"] for row in rows) == wanted


def test_the_words_of_the_command_are_those_of_the_program():
    formats = get_args(DataConfig.model_fields["format"].annotation)
    assert set(commands.TYPES) == {"custom", *formats}
    assert commands.LAYOUTS == LAYOUTS
    assert set(WRITERS) == set(LAYOUTS)


def test_what_has_no_files_says_so(tmp_path: Path):
    (tmp_path / "in").mkdir()
    with pytest.raises(LimnerError, match="contains no picture files"):
        prepare("auto", tmp_path / "in", tmp_path / "data", overrides=["data.dataset_name=shapes"])
