"""`limner caption`: a .txt beside each picture that has none, by tiny models of known kinds."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captioners import tiny_blip, tiny_blip2, tiny_git, tiny_llava, tiny_vit_gpt2
from PIL import Image
from tiny import TINY

from limner import device as devices
from limner.apps.captioning import caption as captioning
from limner.apps.captioning.caption import caption_images, images_to_caption
from limner.apps.captioning.captioner import Captioner
from limner.cli import main
from limner.data.formats.folders import FolderImages
from limner.errors import LimnerError

MODELS: dict[str, Callable[[Path], Path]] = {
    "blip": tiny_blip,
    "git": tiny_git,
    "vit-gpt2": tiny_vit_gpt2,
    "blip-2": tiny_blip2,
    "llava": tiny_llava,
}
CPU = torch.device("cpu")
COUNT = 6


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: build(folder / name) for name, build in MODELS.items()}


def images(count: int = COUNT) -> list[Image.Image]:
    """Pictures that differ much, of several sizes."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    sides = [(40, 30), (32, 32), (20, 50)]
    nearest = Image.Resampling.NEAREST
    return [Image.fromarray(one).resize(sides[i % 3], nearest) for i, one in enumerate(coarse)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures at two depths: 0.png, more/1.png, 2.png, ..."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number, image in enumerate(images()):
        image.save(folder / ("more" if number % 2 else ".") / f"{number}.png")
    return folder


def texts(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*.txt"))
    }


def numbered(images: Sequence[Image.Image]) -> list[str]:
    """In place of a model: says the size."""
    return [f"a picture {p.width} wide and {p.height} high" for p in images]


# ---- models


@pytest.mark.parametrize("name", MODELS)
def test_captions_are_the_same_one_by_one_and_in_batches(
    name: str, models: dict[str, Path]
) -> None:
    captioner = Captioner(str(models[name]), CPU, torch.float32)
    pictures = images()
    together = captioner(pictures, 12)
    assert together == [captioner([image], 12)[0] for image in pictures]
    assert len(set(together)) > 1  # it looks
    for caption in together:
        assert 0 < len(caption.split()) <= 12
        assert "<" not in caption  # no marks


@pytest.mark.parametrize("name", ["blip", "git"])
def test_a_caption_begins_with_the_prompt(name: str, models: dict[str, Path]) -> None:
    captioner = Captioner(str(models[name]), CPU, torch.float32, "a photo of")
    for caption in captioner(images(), 8):
        assert caption.startswith("a photo of ")
    # The prompt is not followed by its end mark, after which a model has nothing more to say.
    begun = captioner._inputs(images(1))["input_ids"][0].tolist()
    words = captioner.tokenizer("a photo of", add_special_tokens=False).input_ids
    end = [captioner.tokenizer.sep_token_id] if name == "blip" else []  # which takes it off itself
    assert begun == [captioner.tokenizer.cls_token_id, *words, *end]


def test_a_chat_model_is_asked_and_only_its_answer_is_kept(models: dict[str, Path]) -> None:
    captioner = Captioner(str(models["llava"]), CPU, torch.float32, "the old house on the sea")
    asked = captioner._inputs(images(2))
    words = captioner.tokenizer.batch_decode(asked["input_ids"], skip_special_tokens=True)
    assert all("the old house on the sea dog" in " ".join(said.split()) for said in words)
    other = Captioner(str(models["llava"]), CPU, torch.float32, "two red")
    answers = captioner(images(), 8)
    assert all("the old house on the sea" not in answer for answer in answers)
    assert answers != other(images(), 8)


def test_a_model_that_takes_no_prompt_says_so(models: dict[str, Path]) -> None:
    with pytest.raises(LimnerError, match=r"--prompt: not supported by"):
        Captioner(str(models["vit-gpt2"]), CPU, torch.float32, "a photo of")


# ---- the folder


def test_the_whole_command_and_then_a_run(
    models: dict[str, Path],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # On every processor alike: in bfloat16 a tiny model hesitates between words.
    monkeypatch.setattr(devices, "part_precision", lambda precision: torch.float32)
    (photos / "0.txt").write_text("my own words", encoding="utf-8")
    (photos / "2.txt").write_text(" \n", encoding="utf-8")  # says nothing
    words = ["caption", str(photos), "--model", str(models["blip"]), "--device", "cpu"]
    words += ["--max_new_tokens", "9", "--batch_size", "4"]
    assert main(words) == 0
    assert "5 captions written, 1 kept, 0 pictures could not" in capsys.readouterr().out
    written = texts(photos)
    assert written.pop("0.txt") == "my own words"
    assert len(written) == COUNT - 1
    captioner = Captioner(str(models["blip"]), CPU, torch.float32)
    for name, text in written.items():
        with Image.open((photos / name).with_suffix(".png")) as image:
            assert text == captioner([image.convert("RGB")], 9)[0] + "\n"

    times = {p: p.stat().st_mtime_ns for p in photos.rglob("*.txt")}
    assert main(words) == 0
    assert "all 6 pictures" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in photos.rglob("*.txt")} == times

    theirs = ("data.dataset_name=", "data.num_samples=", "training.max_steps=")
    run = [word for word in TINY if not word.startswith(theirs)]
    run += [f"data.dataset_path={photos.as_posix()}", "training.max_steps=1"]
    run += ["training.compile_model=false", f"training.output_dir={tmp_path.as_posix()}/run"]
    assert main(["train", *run]) == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open(encoding="utf-8")]
    assert any("6 pictures" in str(event.get("message")) for event in log)

    assert main([*words, "--overwrite"]) == 0
    assert "6 captions written, 0 kept" in capsys.readouterr().out
    assert texts(photos)["0.txt"] != "my own words"


def test_bad_pictures_are_listed_and_are_no_end(
    models: dict[str, Path], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (photos / "0.png").read_bytes()
    (photos / "0.png").write_bytes(whole[: len(whole) // 2])
    (photos / "more" / "1.png").write_text("no picture", encoding="utf-8")
    words = ["caption", str(photos), "--model", str(models["git"]), "--device", "cpu"]
    assert main([*words, "--batch_size", "2", "--max_new_tokens", "5"]) == 0
    said = capsys.readouterr().out
    assert "4 captions written, 0 kept, 2 pictures could not be captioned" in said
    assert "0.png" in said
    assert "more/1.png" in said
    assert set(texts(photos)) == {"2.txt", "4.txt", "more/3.txt", "more/5.txt"}
    for path in photos.rglob("*.png"):
        path.write_text("no picture", encoding="utf-8")
    assert main([*words, "--overwrite"]) == 2  # none of them


def test_where_memory_runs_out_half_as_many_are_looked_at(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes: list[int] = []

    def small(images: Sequence[Image.Image]) -> list[str]:
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return numbered(images)

    keys, _ = images_to_caption(photos)
    told = caption_images(photos, keys, small, batch_size=5)
    assert told.written == COUNT
    assert sizes[0] == 5
    assert sum(size for size in sizes if size <= 2) == COUNT
    assert sum(size > 2 for size in sizes) <= 2
    assert any("out of memory; the batch size is now 2" in line for line in caplog.messages)
    for key in keys:
        with Image.open(photos / key) as image:
            expected = numbered([image])[0] + "\n"
        assert (photos / key).with_suffix(".txt").read_text(encoding="utf-8") == expected


KILLED = """
import os, sys
from pathlib import Path
from limner.apps.captioning.caption import caption_images, images_to_caption

folder, replace, done = Path(sys.argv[1]), os.replace, []

def replace_three(source, target):
    if len(done) == 3:
        os._exit(9)
    done.append(target)
    replace(source, target)

os.replace = replace_three
keys, _ = images_to_caption(folder)
caption_images(folder, keys, lambda pictures: ["a picture"] * len(pictures), batch_size=4)
"""
"""Dies between writing its fourth caption and putting it in its place."""


def test_a_run_that_is_killed_goes_on(photos: Path) -> None:
    keys, _ = images_to_caption(photos)
    done = subprocess.run([sys.executable, "-c", KILLED, str(photos)], check=False)
    assert done.returncode == 9
    assert len(list(photos.rglob(".*"))) == 1  # what it was at
    left, kept = images_to_caption(photos)
    assert list(photos.rglob(".*")) == []
    first = texts(photos)
    assert first == {Path(key).with_suffix(".txt").as_posix(): "a picture\n" for key in keys[:3]}
    assert (left, kept) == (keys[3:], 3)
    assert caption_images(photos, left, numbered, batch_size=4).written == 3
    assert images_to_caption(photos) == ([], COUNT)
    assert first.items() <= texts(photos).items()
    assert len(FolderImages(photos).rows) == COUNT


def test_what_is_interrupted_leaves_nothing_half_written(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(source: Any, target: Any) -> None:
        raise KeyboardInterrupt

    keys, _ = images_to_caption(photos)
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        caption_images(photos, keys, numbered)
    assert [path.suffix for path in photos.rglob("*.*")] == [".png"] * COUNT


def test_a_few_are_a_stable_choice(photos: Path) -> None:
    keys, _ = images_to_caption(photos)
    told = caption_images(photos, keys, numbered, num_samples=2)
    assert (told.written, told.left) == (2, 4)
    first = set(texts(photos))
    for path in photos.rglob("*.txt"):
        path.unlink()
    caption_images(photos, keys[::-1], numbered, num_samples=2)
    assert set(texts(photos)) == first


def test_captions_that_look_wrong_are_said(photos: Path) -> None:
    keys, _ = images_to_caption(photos)

    def looping(images: Sequence[Image.Image]) -> list[str]:
        return ["a dog and a dog and a dog and a dog"] * len(images)

    told = caption_images(photos, keys, looping)
    assert [key for key, _ in told.odd] == keys
    assert "caption-repeats" in told.odd[0][1]
    silent = caption_images(photos, keys, lambda images: [""] * len(images))
    assert (silent.written, len(silent.refused)) == (0, COUNT)


# ---- what cannot be done


# ---- what lies there already


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("cat.png", "cat.TXT"),  # as cameras and cards name files
        ("caf\u00e9.png", "cafe\u0301.txt"),  # as a Mac spells them
        ("cafe\u0301.png", "caf\u00e9.Txt"),
    ],
)
def test_a_caption_is_seen_that_training_would_read(image: str, text: str, tmp_path: Path) -> None:
    images(1)[0].save(tmp_path / image)
    (tmp_path / text).write_text("my own words", encoding="utf-8")
    assert images_to_caption(tmp_path) == ([], 1)
    keys, _ = images_to_caption(tmp_path, overwrite=True)
    assert caption_images(tmp_path, keys, numbered).written == 1
    (row,) = FolderImages(tmp_path).rows  # in place of the other, not beside it
    assert row.captions[0].startswith("a picture ")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_caption_file_of_kohyas_scripts_is_a_caption(tmp_path: Path) -> None:
    images(1)[0].save(tmp_path / "a.png")
    (tmp_path / "a.caption").write_text("my own words", encoding="utf-8")
    assert images_to_caption(tmp_path) == ([], 1)


@pytest.mark.skipif(os.name == "nt", reason="links and pipes need rights there")
def test_links_and_pipes_in_the_place_of_a_caption_are_refused(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "set"
    home.mkdir()
    (folder / "texts").mkdir(parents=True)
    (home / "empty.py").touch()
    for name in ("pipe", "broken", "empty", "folder", "inside"):
        images(1)[0].save(folder / f"{name}.png")
    os.mkfifo(folder / "pipe.txt")
    (folder / "folder.txt").mkdir()
    links = {"broken": home / "new", "empty": home / "empty.py"}
    for name, target in {**links, "inside": folder / "texts" / "a.txt"}.items():
        (folder / f"{name}.txt").symlink_to(target)
    for overwrite in (False, True):
        keys, kept = images_to_caption(folder, overwrite)
        told = caption_images(folder, keys, numbered)
        reasons = {row.key.removesuffix(".png"): row.reason for row in told.refused}
        assert set(reasons) == {"pipe", "broken", "empty", "folder"}
        assert all("a link that leads out of the folder" in reasons[name] for name in links)
        assert "not a regular file" in reasons["pipe"]
        assert (told.written, kept) == (1, 0) if overwrite else told.written + kept == 1
    assert [path.name for path in home.iterdir()] == ["empty.py"]
    assert (home / "empty.py").read_text(encoding="utf-8") == ""
    assert (folder / "inside.txt").is_symlink()
    assert (folder / "texts" / "a.txt").read_text(encoding="utf-8").startswith("a picture ")


@pytest.mark.parametrize("name", captioning.METADATA)
def test_a_folder_with_metadata_is_refused(
    name: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / name).write_text("[]", encoding="utf-8")
    assert main(["caption", str(photos), "--model", "nowhere/at-all"]) == 2
    assert f"has a {name}" in capsys.readouterr().err
    assert texts(photos) == {}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("captions.csv", "file,caption\n0.png,a\n", "a table of captions, captions.csv"),
        ("captions_train.json", "{}", "a data set of the format coco"),
        ("a.tar", "", "a data set of the format webdataset"),
    ],
)
def test_a_folder_is_refused_in_which_captions_stand_elsewhere(
    name: str, text: str, said: str, photos: Path
) -> None:
    (photos / name).write_text(text, encoding="utf-8")
    with pytest.raises(LimnerError, match=f"has {said}, so training reads"):
        images_to_caption(photos)


@pytest.mark.parametrize(
    ("name", "text"),
    [("prices.csv", "id,price\n1,2\n"), ("rows.json", '[{"image": "0.png", "text": "a"}]')],
)
def test_what_gives_way_to_txt_files_does_not_stop_captions(
    name: str, text: str, photos: Path
) -> None:
    (photos / name).write_text(text, encoding="utf-8")
    keys, _ = images_to_caption(photos)
    assert caption_images(photos, keys, numbered).written == COUNT
    assert len(FolderImages(photos).rows) == COUNT


def test_no_code_of_a_model_is_run(
    models: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither its Python files nor its pickles."""
    evil, ran = tmp_path / "evil", tmp_path / "ran"
    shutil.copytree(models["blip"], evil)
    code = f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
    for file in ("modeling_evil.py", "processing_evil.py", "configuration_evil.py"):
        (evil / file).write_text(code, encoding="utf-8")
    config = json.loads((evil / "config.json").read_text(encoding="utf-8"))
    config["model_type"] = "evil"
    config["auto_map"] = {
        "AutoConfig": "configuration_evil.EvilConfig",
        "AutoModelForImageTextToText": "modeling_evil.Evil",
        "AutoProcessor": "processing_evil.Evil",
    }
    (evil / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (evil / "processor_config.json").unlink(missing_ok=True)
    words = ["caption", str(photos), "--device", "cpu", "--model"]
    assert main([*words, str(evil)]) == 2
    assert "--model: " in capsys.readouterr().err
    assert not ran.exists()

    pickled = tmp_path / "pickled"
    shutil.copytree(models["blip"], pickled)
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    assert main([*words, str(pickled)]) == 2
    assert "has no *.safetensors" in capsys.readouterr().err
    assert texts(photos) == {}


def test_what_is_missing_is_said(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["caption", str(tmp_path / "empty"), "--model", "x/y"]) == 2
    assert "has no pictures" in capsys.readouterr().err
    assert main(["caption", str(photos), "--model", "./nowhere", "--batch_size", "0"]) == 2
    assert "--batch_size 0: must be at least 1" in capsys.readouterr().err
    assert main(["caption", str(photos), "--model", "./nowhere", "--device", "cpu"]) == 2
    assert "--model: './nowhere' is not a folder" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["caption", str(photos), "--model", "./nowhere", "--device", "cpu"]) == 2
    assert 'pip install "limner[pretrained]"' in capsys.readouterr().err
