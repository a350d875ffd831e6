"""The same pictures in every format: the same rows, a run that trains, and goes on exactly."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from compared_runs import differing, elsewhere, run
from emoji_formats import COUNT, EXAMPLES, SIDE, emoji, settings, write
from PIL import Image
from pretrained import tiny_autoencoder
from tiny import TINY

from limner.cli import main
from limner.config import Config, load_config
from limner.config.data import DataConfig
from limner.data.dataset import ImageDataset
from limner.data.formats.columns import CAPTIONS, IMAGE, Columns
from limner.data.formats.detect import recognise
from limner.data.open import open_data, open_image_dataset
from limner.errors import LimnerError
from limner.files.fingerprints import Fingerprints

Build = Callable[..., Config]


def opened(words: list[str]) -> ImageDataset:
    return open_image_dataset(load_config(None, words))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_format_gives_the_rows_that_were_written(name: str, tmp_path: Path):
    example = EXAMPLES[name]
    images = opened(settings(name, tmp_path / "data"))
    assert images.refused == []
    keys = [row.key.split("/")[-1] for row in images.rows]
    assert keys == [example.key(place) for place in range(COUNT)]
    for place, (row, one) in enumerate(zip(images.rows, emoji(), strict=True)):
        assert row.captions == one.captions
        assert np.array_equal(images.load(row, SIDE), one.pixels)
        aside = None if example.held_out is None else place in example.held_out
        assert row.held_out is aside
    assert f"{COUNT} pictures with {2 * COUNT} captions" in images.description


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_format_is_found_by_looking_and_can_be_named(name: str, tmp_path: Path):
    words = settings(name, tmp_path / "data")
    config = load_config(None, words)
    path = Path(config.data.dataset_path)
    assert recognise(path, Columns.of(config)) == EXAMPLES[name].kind
    named = opened([*words, f"data.format={EXAMPLES[name].kind}"])
    assert list(named.rows) == list(opened(words).rows)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_format_trains_and_goes_on_to_the_bit(name: str, tmp_path: Path, tiny_config: Build):
    words = [*settings(name, tmp_path / "data"), "training.max_steps=4", "training.save_steps=2"]
    words += ["training.heldout_steps=4", f"cache.folder='{tmp_path / 'cache'}'"]
    whole = run(elsewhere(tiny_config(*words), "whole"))
    parted = run(elsewhere(tiny_config(*words), "parted"), steps=2)
    run(elsewhere(tiny_config(*words), "parted"), resume="latest")
    assert differing(whole / "checkpoint-4", parted / "checkpoint-4") == []
    data = open_data(tiny_config(*words))
    if aside := EXAMPLES[name].held_out:
        assert {row.key for row in data.held_out.rows} == {data.set.rows[i].key for i in aside}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_format_travels_to_workers_and_knows_its_contents(name: str, tmp_path: Path):
    words = settings(name, tmp_path / "data")
    images = opened(words)
    there = pickle.loads(pickle.dumps(images))
    last = images.rows[COUNT - 1]
    assert np.array_equal(there.load(last, SIDE), emoji()[-1].pixels)
    known = Fingerprints(tmp_path / "cache" / "contents.npy")
    contents = images.contents(images.rows, known)
    assert contents.shape == (COUNT, 16)
    assert contents.dtype == np.uint8
    assert len({row.tobytes() for row in contents}) == COUNT
    assert contents.any(axis=1).all()
    again = opened(words).contents(images.rows[5:7], known)
    assert np.array_equal(again, contents[5:7])


@pytest.fixture
def table(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a table beside three pictures: a.png, b.png, c.png."""
    for level, name in enumerate("abc"):
        Image.new("RGB", (4, 4), (80 * level,) * 3).save(tmp_path / f"{name}.png")

    def build(text: str, name: str = "t.csv") -> Path:
        write(tmp_path / name, text)
        return tmp_path / name

    return build


def rows_of(path: Path, *words: str) -> dict[str, tuple[str, ...]]:
    return {r.key: r.captions for r in opened([f"data.dataset_path='{path}'", *words]).rows}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", 'Image,Caption\na.png,red\nb.png,"blue, deep"\n'),
        ("t.csv", "id;image_name;comment\r\n1;a.png;red\r\n2;b.png;blue, deep\r\n"),
        ("t.csv", "image_name| comment_number| comment\na.png| 0| red\nb.png| 0| blue, deep\n"),
        ("captions.txt", 'image,caption\na.png,red\nb.png,"blue, deep"\n'),
        ("t.tsv", "prompt\tpath\nred\ta.png\nblue, deep\tb.png\n"),
        ("t.jsonl", '{"img": "a.png", "prompt": "red"}\n{"img": "b.png", "prompt": "blue, deep"}'),
        ("t.json", '[{"file": "a.png", "raw": "red"}, {"file": "b.png", "raw": "blue, deep"}]'),
    ],
)
def test_columns_are_known_by_what_people_call_them(table, name: str, text: str):
    path = table(text, name)
    wanted = {"a.png": ("red",), "b.png": ("blue, deep",)}
    assert rows_of(path) == wanted
    if name != "t.json":  # which may be anything, and counts only where it is named
        assert rows_of(path.parent) == wanted


def test_which_columns_are_used_is_said_and_can_be_chosen(table):
    path = table("image,file_name,text,short,zh\na.png,b.png,long,brief,短\nc.png,b.png,l,,\n")
    default = opened([f"data.dataset_path='{path}'"])
    assert "t.csv, columns image, text" in default.description
    assert rows_of(path) == {"a.png": ("long",), "c.png": ("l",)}
    words = ["data.image_column=file_name", "data.caption_column=[short, text, zh]"]
    # Of several columns the empty ones are passed over; the first is the main caption.
    assert rows_of(path, *words) == {"b.png": ("brief", "long", "短", "l")}
    with pytest.raises(LimnerError, match=r"no 'shrt'; found 'image', .*; did you mean 'short'\?"):
        rows_of(path, "data.caption_column=shrt")
    with pytest.raises(LimnerError, match=r"no 'pic'; found .*Correct data\.image_column"):
        rows_of(path, "data.image_column=pic")


@pytest.mark.parametrize(
    ("cell", "captions"),
    [
        ("\"['one', 'two, 2']\"", ("one", "two, 2")),
        ('"[""one"", ""two, 2""]"', ("one", "two, 2")),
        ("[one]", ("[one]",)),
        ("\"['one', __import__('os')]\"", ("['one', __import__('os')]",)),
        ('"[1, 2]"', ("[1, 2]",)),
    ],
)
def test_a_list_in_a_cell_is_several_captions_and_nothing_else_is(table, cell: str, captions):
    assert rows_of(table(f"image,text\na.png,{cell}\n")) == {"a.png": captions}


@pytest.mark.parametrize("cell", ["[]", " [ ] ", '"[""""]"', "\"['  ']\""])
def test_an_empty_list_is_no_caption(table, cell: str):
    path = table(f"image,text\na.png,{cell}\nb.png,red\n")
    found = opened([f"data.dataset_path='{path}'"])
    assert [row.captions for row in found.rows] == [("red",)]
    [refused] = found.refused
    assert refused.key == "a.png"
    assert "is empty" in refused.reason


def test_rows_of_json_may_differ_and_the_commonest_name_counts(table):
    rows = [{"picture": "a.png", "text": "odd"}]
    rows += [{"image": f"{name}.png", "text": name, "id": 1} for name in "bc"]
    found = opened([f"data.dataset_path='{table(json.dumps(rows), 'metadata.json').parent}'"])
    assert [row.key for row in found.rows] == ["b.png", "c.png"]
    [refused] = found.refused
    assert "row 1: there is no 'image'; found 'picture', 'text'. Rename 'picture'" in refused.reason


def test_a_table_says_who_is_held_out(table):
    path = table("image,text,held_out\na.png,a,true\nb.png,b,False\nc.png,c,\n")
    rows = opened([f"data.dataset_path='{path}'"]).rows
    assert [row.held_out for row in rows] == [True, False, None]
    path = table("image,text,held_out\na.png,a,maybe\nb.png,b,1\n")
    [refused] = opened([f"data.dataset_path='{path}'"]).refused
    assert "'held_out' is 'maybe', but must be true or false" in refused.reason


def test_bad_rows_of_a_table_are_listed_with_their_place(table):
    path = table("image,text\na.png,good\ngone.png,x\n../b.png,x\nb.png,\n,x\nhttp://x/c.png,x\n")
    found = opened([f"data.dataset_path='{path}'"])
    assert [row.key for row in found.rows] == ["a.png"]
    reasons = [row.reason for row in found.refused]
    for place, wanted in enumerate(
        ("is not there", "leads out of", "is empty", "not the name", "this is a URL")
    ):
        assert reasons[place].startswith(f"t.csv, line {place + 3}: ")
        assert wanted in reasons[place]


def test_pictures_are_found_in_the_one_folder_that_has_them(table, tmp_path: Path):
    path = table("image,text\nx.png,one\ny.png,two\nz.png,gone\n")
    (tmp_path / "Images").mkdir()
    for name in "xy":
        Image.new("RGB", (4, 4)).save(tmp_path / "Images" / f"{name}.png")
    found = opened([f"data.dataset_path='{path}'"])
    assert [row.key for row in found.rows] == ["Images/x.png", "Images/y.png"]
    assert "pictures in Images/" in found.description
    assert [row.key for row in found.refused] == ["Images/z.png"]
    (tmp_path / "other").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "other" / "x.png")
    with pytest.raises(
        LimnerError, match=r"none of the 3 rows can be used"
    ):  # which of the two is meant?
        rows_of(path)


@pytest.mark.parametrize("name", ["data.md", "data.zh-CN.md"])
def test_the_guide_lists_the_names_that_are_known_in_their_order(name: str):
    guide = (Path(__file__).parents[3] / "docs" / name).read_text(encoding="utf-8")
    for known in (IMAGE, CAPTIONS):
        assert ", ".join(f"`{word}`" for word in known) in guide
    for key, field in DataConfig.model_fields.items():
        if field.default is not None and f"| `{key}` |" in guide:
            assert re.search(rf"\| `{key}` \| `?{str(field.default).lower()}`? \|", guide), key


def test_a_run_says_what_it_found(
    tmp_path: Path, quick_end: None, capfd: pytest.CaptureFixture[str]
):
    words = settings("metadata.jsonl", tmp_path / "data")
    output = f"training.output_dir='{tmp_path / 'run'}'"
    assert main(["train", *TINY, *words, "training.max_steps=1", output]) == 0
    said = capfd.readouterr().out
    assert "data: 24 pictures with 48 captions from " in said
    assert "(metadata.jsonl, columns file_name, english, chinese)" in said


def test_two_tables_are_not_chosen_between(table, tmp_path: Path):
    table("image,text\na.png,one\n", "one.csv")
    table("image,text\na.png,two\n", "two.csv")
    with pytest.raises(LimnerError, match=r"2 tables .*one\.csv, two\.csv; set data\.dataset_path"):
        rows_of(tmp_path)
    table("week,visitors\n1,2\n", "two.csv")  # is none
    assert rows_of(tmp_path) == {"a.png": ("one",)}


def test_a_list_of_rows_in_json_is_found_where_there_is_nothing_else(tmp_path: Path):
    keys = [f"{folder}/{n}.png" for folder in ("garden", "holiday") for n in (0, 1)]
    for level, key in enumerate(keys):
        (tmp_path / key).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (60 * level,) * 3).save(tmp_path / key)
    write(tmp_path / "settings.json", '{"image": "x.png", "text": "no list"}')
    rows = [{"image": key, "text": f"my words, {key}"} for key in keys]
    write(tmp_path / "words.json", "\n" + json.dumps(rows, indent=1))
    assert rows_of(tmp_path) == {key: (f"my words, {key}",) for key in keys}
    assert rows_of(tmp_path, "data.format=table") == rows_of(tmp_path)
    write(tmp_path / "more.json", json.dumps(rows))
    with pytest.raises(LimnerError, match=r"2 tables .*: more\.json, words\.json"):
        rows_of(tmp_path)
    for key in keys:  # captions beside the pictures come first, as they did before
        write((tmp_path / key).with_suffix(".txt"), "beside")
    assert rows_of(tmp_path) == dict.fromkeys(keys, ("beside",))


def test_json_lines_are_found_although_the_first_is_broken(table, tmp_path: Path):
    table('{"image": "a.png", "te\n{"image": "b.png", "text": "b"}\n', "words.jsonl")
    assert rows_of(tmp_path) == {"b.png": ("b",)}


def test_a_table_that_is_not_read_is_named(tmp_path: Path):
    for folder, colour in (("red_apple", "red"), ("pear", "green")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (4, 4), colour).save(tmp_path / folder / "0.png")
    assert "Not read" not in opened([f"data.dataset_path='{tmp_path}'"]).description
    write(tmp_path / "labels.csv", "id,label\npear/0.png,my words\n")
    found = opened([f"data.dataset_path='{tmp_path}'"])
    assert (
        "Not read: labels.csv (if it contains the captions, set data.dataset_path to it"
        in found.description
    )
    named = [f"data.dataset_path='{tmp_path / 'labels.csv'}'", "data.image_column=id"]
    assert [row.captions for row in opened([*named, "data.caption_column=label"]).rows] == [
        ("my words",)
    ]


def test_a_broken_parquet_is_an_error_for_people(table, tmp_path: Path):
    table("no parquet", "t.parquet")
    with pytest.raises(LimnerError, match=r"t\.parquet cannot be read as Parquet"):
        rows_of(tmp_path / "t.parquet")


# Classes


def classes(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = folder / name / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(emoji()[number].data)
    return folder


def test_names_of_folders_are_captions(tmp_path: Path):
    names = ["red_apple", "002.Laysan_Albatross", "fruit/ripe-red__pear", "苹果", "7 seas"]
    found = opened([f"data.dataset_path='{classes(tmp_path / 'set', *names)}'"])
    assert {row.captions[0] for row in found.rows} == {
        *("red apple", "Laysan Albatross", "ripe red pear", "苹果", "seas")
    }
    assert found.refused == []
    assert "the names of 5 folders as captions" in found.description


def test_classes_train_and_go_on_to_the_bit(tmp_path: Path, tiny_config: Build):
    for number, one in enumerate(emoji()):
        folder = tmp_path / "set" / f"class_{'abc'[number % 3]}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / one.name).write_bytes(one.data)
    words = ["data.dataset_name=null", "data.num_samples=null", "training.max_steps=4"]
    words += [f"data.dataset_path='{tmp_path / 'set'}'", "training.save_steps=2"]
    whole = run(elsewhere(tiny_config(*words), "whole"))
    parted = run(elsewhere(tiny_config(*words), "parted"), steps=2)
    run(elsewhere(tiny_config(*words), "parted"), resume="latest")
    assert differing(whole / "checkpoint-4", parted / "checkpoint-4") == []


def test_train_and_test_folders_of_classes_are_the_split(tmp_path: Path):
    names = [f"{split}/{name}" for split in ("train", "test") for name in ("apple", "pear")]
    found = opened([f"data.dataset_path='{classes(tmp_path / 'set', *names)}'"])
    assert {row.key.split("/")[0]: row.held_out for row in found.rows} == {
        "train": False,
        "test": True,
    }
    assert "Held out: all in test." in found.description


@pytest.mark.parametrize(
    "names",
    [
        ("images",),  # all in one folder
        ("apple", "fruit/apple"),
        ("apple", "."),  # one at the top
        ("train", "test"),
        ("apple", "images"),
        ("n01440764", "n01443537"),  # codes of ImageNet
        ("1", "2"),
    ],
)
def test_folders_that_may_be_anything_are_not_taken_for_classes(tmp_path: Path, names):
    folder = classes(tmp_path / "set", *names)
    with pytest.raises(LimnerError, match=r"(?s)none with a caption.*red_apple/0001\.jpg"):
        opened([f"data.dataset_path='{folder}'"])


def test_classes_that_are_named_so_are_read_and_what_says_nothing_is_refused(tmp_path: Path):
    folder = classes(tmp_path / "set", "images", ".", "n01440764", "12")
    found = opened([f"data.dataset_path='{folder}'", "data.format=classes"])
    assert [row.captions for row in found.rows] == [("images",)]
    reasons = " ".join(row.reason for row in found.refused)
    for wanted in ("is in no folder", "'12' contains no word", "'n01440764' is a code"):
        assert wanted in reasons


# COCO and CUB


def test_of_coco_alone_nothing_is_fixed(tmp_path: Path):
    path = EXAMPLES["coco"].build(tmp_path / "set")
    one = path / "annotations/captions_train2017.json"
    assert {row.held_out for row in opened([f"data.dataset_path='{one}'"]).rows} == {None}
    assert "Held out: all of val2017." in opened([f"data.dataset_path='{path}'"]).description


def test_cub_without_captions_has_its_classes_names(tmp_path: Path):
    path = EXAMPLES["cub"].build(tmp_path / "CUB_200_2011")
    (path / "cvpr2016_cub").rename(tmp_path / "elsewhere")
    found = opened([f"data.dataset_path='{tmp_path}'"])  # the folder around it
    assert {row.captions for row in found.rows} == {("Class 0",), ("Class 1",)}
    assert "class names as captions" in found.description
    (tmp_path / "elsewhere").rename(tmp_path / "cvpr2016_cub")  # beside it
    assert opened([f"data.dataset_path='{path}'"]).rows[0].captions == emoji()[0].captions


def test_cubs_gaps_are_refused_and_listed(tmp_path: Path):
    path = EXAMPLES["cub"].build(tmp_path / "set")
    texts = sorted((path / "cvpr2016_cub").rglob("*.txt"))
    texts[0].unlink()
    texts[1].write_text("\n")
    split = path / "train_test_split.txt"
    split.write_text("\n".join(split.read_text().splitlines()[:-1]))
    found = opened([f"data.dataset_path='{path}'"])
    reasons = " ".join(row.reason for row in found.refused)
    assert (len(found.rows), len(found.refused)) == (COUNT - 3, 3)
    for wanted in ("its captions file, ", "the list of captions is empty", "has None for it"):
        assert wanted in reasons
    write(path / "images.txt", "1 x.jpg\nbroken\n")
    with pytest.raises(LimnerError, match=r"images\.txt, line 2: 'broken' is not 'number value'"):
        opened([f"data.dataset_path='{path}'"])


def weights_of(name: str, tmp_path: Path, build: Build, *words: str) -> dict[str, torch.Tensor]:
    """After four steps on all pictures of an example."""
    folder = name.replace(" ", "-")
    words = (*settings(name, tmp_path / folder), "data.train_split=1", *words)
    output = f"training.output_dir='{tmp_path / f'{folder}-run'}'"
    run_folder = run(build(*words, "training.max_steps=4", "training.save_steps=4", output))
    return torch.load(run_folder / "checkpoint-4" / "model.pt", weights_only=True)


def test_the_same_pictures_train_the_same_model_in_whatever_format(
    tmp_path: Path, tiny_config: Build
):
    """Nothing of a format but its rows, in their order, has a part in what is learned."""
    one, *others = (
        name
        for name, example in EXAMPLES.items()
        if example.held_out is None and not example.windowed
    )
    expected = weights_of(one, tmp_path, tiny_config)
    for name in others:
        found = weights_of(name, tmp_path, tiny_config)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), name


def test_also_in_latents_that_are_stored_by_their_contents(tmp_path: Path, tiny_config: Build):
    vae = tiny_autoencoder(tmp_path / "vae")
    words = [f"vae.pretrained_model_name='{vae}'", "model.patch_size=2"]
    found = [
        weights_of(
            name, tmp_path, tiny_config, *words, f"cache.folder='{tmp_path / 'caches' / name}'"
        )
        for name in ("metadata.json", "save_to_disk", "tars", "parquet of pictures")
    ]
    for other in found[1:]:
        assert all(torch.equal(found[0][key], other[key]) for key in found[0])
