"""What cannot be drawn or written is told before the drawing; what is drawn is never lost."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from limner.cli import main
from limner.inference import saving
from limner.inference.generator import ImageGenerator
from limner.inference.saving import how_drawn


@pytest.fixture
def model(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(trained / "outputs")


@pytest.fixture
def nothing_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("it was drawn before it was checked")

    monkeypatch.setattr("limner.inference.generator.draw", fail)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a", "--output", "a.psd"], r"a\.psd is in a format that Pillow cannot"),
        (["a", "--output", "a.nothing"], r"a\.nothing does not end in a picture format"),
        (["a", "--output", "."], r"--output \. is a folder; use a file such as apple\.png"),
        (["a", "--output", "file.txt/a.png"], r"file\.txt/a\.png cannot be written \("),
        (["a", "--output", "x" * 300 + ".png"], r"\.png cannot be written \(File name too long"),
        (["a", "--output", "a.jpg", "--height", "70000"], r"JPEG cannot hold .* 1 x 70000"),
        (["a", "--height", "200000"], r"16 x 200000 pixels make 200,000 patches"),
        (["a", "--height", "200000", "--width", "200000"], r"2,500,000,000 patches"),
        (["a", "sampling.guidance_scale=2"], r"is a setting, but limner generate only takes flags"),
        (["caf\udce9"], r"the prompt 'caf\\udce9' is not valid UTF-8"),
        (["a", "--negative_prompt", "\ud800"], r"the prompt '\\ud800' is not valid"),
    ],
)  # fmt: skip
@pytest.mark.skipif(sys.platform == "win32", reason="other names are impossible there")
def test_what_is_impossible_is_told_before_anything_is_drawn(
    words: list[str], said: str, model: str, nothing_drawn: None, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "file.txt").write_text("mine", encoding="utf-8")
    assert main(["generate", model, *words]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert "Traceback" not in error
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_file_that_is_there_stays_until_it_is_replaced(
    model: str, nothing_drawn: None, tmp_path: Path
) -> None:
    before = tmp_path / "mine.png"
    Image.new("RGB", (3, 3)).save(before)
    data = before.read_bytes()
    assert main(["generate", model, "\udce9", "--output", "mine.png"]) == 2
    assert before.read_bytes() == data


def test_a_drawing_is_not_lost_where_its_name_cannot_be_written(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full, for the second of three."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    save = saving.save_image

    def full(image: Image.Image, to: Any, format: str | None = None) -> None:
        if isinstance(to, Path) and to.name == "a-1.jpg":
            raise OSError(28, "No space left on device")
        save(image, to, format)

    monkeypatch.setattr(saving, "save_image", full)
    words = ["generate", model, "a red circle", "--num_images", "3", "--output", "a.jpg"]
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out.split() == ["a-0.jpg", "a-2.jpg"]
    pattern = r"a-1\.jpg \(No space left on device\): saved as (\S+) instead"
    (found,) = re.findall(pattern, said.err)
    assert how_drawn(Image.open(found))["seed"] == 1


@pytest.mark.parametrize(
    ("words", "prompts"),
    [
        (["MODEL", "--", "--x"], ["--x"]),
        (["MODEL", "a", "--", "--x", "-1"], ["a", "--x", "-1"]),
        (["MODEL", "--seed", "3", "--", "--x", "b"], ["--x", "b"]),
        (["--checkpoint", "MODEL", "--", "--seed"], ["--seed"]),
        (["--checkpoint", "MODEL", "a", "--", "--"], ["a", "--"]),
        (["--", "MODEL", "--x"], ["--x"]),
    ],
)
def test_after_two_hyphens_all_words_are_prompts(
    words: list[str], prompts: list[str], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def drawn(self: Any, prompts: list[str], **_: Any) -> list[Image.Image]:
        seen.extend(prompts)
        return [Image.new("RGB", (4, 4)) for _ in prompts]

    monkeypatch.setattr(ImageGenerator, "generate_batch", drawn)
    assert main(["generate", *[model if w == "MODEL" else w for w in words]]) == 0
    assert seen == prompts


def test_a_flag_that_is_none_is_still_an_error(model: str) -> None:
    with pytest.raises(SystemExit):
        main(["generate", model, "a", "--outpt", "x.png"])
    with pytest.raises(SystemExit):
        main(["generate", model, "--outpt", "x.png", "--", "a"])


def test_a_prompt_that_is_cut_says_so(model: str, caplog: pytest.LogCaptureFixture) -> None:
    generator = ImageGenerator(model)
    generator.generate("a red circle")
    assert caplog.text == ""
    long = " ".join(["a red circle"] * 40)
    generator.generate_batch([long, long], seeds=[0, 1])
    (message,) = caplog.messages  # once
    length = generator.words.length(long)
    assert f"a prompt of {length} tokens was truncated to {generator.words.max_length}, " in message
    assert "the most this model reads ('a red circle a red" in message
    assert len(message) < 250


def test_memory_that_does_not_suffice_for_one_picture_is_told(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    tried: list[int] = []

    def short(
        model: Any, objective: Any, words: Any, prompts: list[str], *_: Any, **__: Any
    ) -> Any:
        tried.append(len(prompts))
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr("limner.inference.generator.draw", short)
    assert main(["generate", model, "a", "--num_images", "8"]) == 2
    assert tried == [8, 8, 4, 2, 1]  # what the flags would allow, then less and less
    assert "out of memory for a picture of 16 x 16 pixels" in capsys.readouterr().err
