"""Drawing: words, flags, and Python calls give the pictures that they say, again and again."""

import io
import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import limner
from limner import choices, console
from limner.cli import main
from limner.diffusion.solvers import SOLVERS
from limner.errors import LimnerError
from limner.inference.saving import remember


@pytest.fixture
def generate(trained: Path, tmp_path: Path) -> Callable[..., np.ndarray]:
    """generate(*words): the pixels of the picture that `limner generate` draws with these."""

    def draw(*words: str) -> np.ndarray:
        path = tmp_path / "drawn.png"
        assert main(["generate", *words, "--output", str(path)]) == 0
        pixels = np.array(Image.open(path))
        path.unlink()
        return pixels

    return draw


# limner generate


def test_words_and_flags_draw_the_same(trained: Path, generate: Callable[..., np.ndarray]) -> None:
    outputs, prompt = str(trained / "outputs"), "a small red circle at the top left"
    expected = generate(outputs, prompt, "--seed", "1")
    assert expected.shape == (16, 16, 3)
    for words in (
        ["--seed", "1", outputs, prompt],
        [outputs, "--seed", "1", prompt],
        ["--checkpoint", outputs, "--prompt", prompt, "--seed", "1"],
        ["--checkpoint", outputs, prompt, "--seed=1"],
        [str(trained / "outputs" / "checkpoint-6"), prompt, "--seed", "1"],
        [outputs, prompt, "--seed", "1", "--config", str(trained / "tiny.yaml")],
        [outputs, prompt, "--seed", "1", "--device", "cpu", "--scheduler_type", "dpmsolver++"],
        [outputs, prompt, "--seed", "1", "--num_inference_steps", "2", "--guidance_scale", "3"],
    ):
        assert np.array_equal(generate(*words), expected), words


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("", ["--seed", "2"]),
        ("", ["--num_inference_steps", "5"]),
        ("", ["--guidance_scale", "1"]),
        ("", ["--scheduler_type", "ddpm"]),
        ("checkpoint-3", []),
    ],
)
def test_every_flag_changes_the_picture(
    where: str, words: list[str], trained: Path, generate: Callable[..., np.ndarray]
) -> None:
    prompt = ["--prompt", "two blue squares", "--seed", "1"]
    expected = generate("--checkpoint", str(trained / "outputs"), *prompt)
    other = generate("--checkpoint", str(trained / "outputs" / where), *prompt, *words)
    assert not np.array_equal(other, expected)


def test_the_same_seed_gives_the_same_file(trained: Path, tmp_path: Path) -> None:
    files = []
    for number, seed in enumerate(["42", "42", "43"]):
        files.append(tmp_path / f"{number}.png")
        words = [str(trained / "outputs"), "a large green cross in the center", "--seed", seed]
        assert main(["generate", *words, "--output", str(files[-1])]) == 0
    first, again, other = (path.read_bytes() for path in files)
    assert first == again != other


def test_size_flags_are_pixels(trained: Path, generate: Callable[..., np.ndarray]) -> None:
    image = generate(str(trained / "outputs"), "a", "--height", "8", "--width", "32")
    assert image.shape == (8, 32, 3)


@pytest.mark.parametrize("prompt", ["", "   ", "红苹果", "пятно", "🍎", "x" * 500])
def test_any_words_give_a_picture(
    prompt: str, trained: Path, generate: Callable[..., np.ndarray]
) -> None:
    assert generate(str(trained / "outputs"), prompt).shape == (16, 16, 3)
    assert generate("--checkpoint", str(trained / "outputs"), "--prompt", prompt).shape == (
        16,
        16,
        3,
    )


def test_several_prompts_are_numbered_pictures(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["two blue squares", "three red crosses", "", "two blue squares"]
    words = [str(trained / "outputs"), *prompts, "--seed", "5", "--output", str(tmp_path / "a.png")]
    assert main(["generate", *words]) == 0
    paths = [tmp_path / f"a-{number}.png" for number in range(4)]
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    drawn = [np.array(Image.open(path)).astype(int) for path in paths]
    alone = limner.ImageGenerator(trained / "outputs").generate(prompts[1], seed=5)
    assert np.abs(drawn[1] - np.array(alone)).max() <= 1
    assert np.abs(drawn[0] - drawn[3]).max() <= 1
    assert not np.array_equal(drawn[0], drawn[1])


def test_progress_does_not_mix_with_the_list_of_pictures(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console, "SAY_EVERY", 0.0)
    words = [str(trained / "outputs"), "a", "b", "--output", str(tmp_path / "a.png")]
    assert main(["generate", *words, "--num_inference_steps", "3"]) == 0
    out, err = capsys.readouterr()
    assert out.split() == [str(tmp_path / f"a-{number}.png") for number in range(2)]
    assert re.findall(r"(\d) of 2 pictures drawn, about ", err) == ["0", "1"]
    logging.getLogger("limner.x").info("of what this process does next")
    assert capsys.readouterr().out == "of what this process does next\n"


def test_prompts_keep_their_order_wherever_the_flags_are(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, flags = str(trained / "outputs"), ["--seed", "5", "--output", str(tmp_path / "a.png")]
    asked: list[list[str]] = []

    def draw(self: limner.ImageGenerator, prompts: list[str], **_: object) -> list[Image.Image]:
        asked.append(prompts)
        return [remember(Image.new("RGB", (4, 4)), {"prompt": prompt}) for prompt in prompts]

    monkeypatch.setattr(limner.ImageGenerator, "generate_batch", draw)
    for words in (
        [outputs, "one", "two", "three", *flags],
        [outputs, "one", *flags, "two", "three"],
        [outputs, *flags, "one", "two", "three"],
        ["--checkpoint", outputs, *flags, "one", "two", "three"],
        ["one", "two", "--checkpoint", outputs, *flags, "three"],
        ["--checkpoint", outputs, "one", "two", *flags, "--prompt", "three"],
    ):
        assert main(["generate", *words]) == 0
    assert asked == [["one", "two", "three"]] * 6


def test_letters_that_the_screen_does_not_have_are_no_error(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")  # as on Windows
    monkeypatch.setattr(sys, "stdout", screen)
    path = tmp_path / "红苹果.png"
    assert main(["generate", str(trained / "outputs"), "红苹果", "--output", str(path)]) == 0
    assert path.is_file()
    screen.flush()
    assert screen.buffer.getvalue().strip().endswith(b"???.png")  # type: ignore[attr-defined]


# Several pictures, sheets, and variations


def drawn_by(trained: Path, folder: Path, *words: str) -> list[np.ndarray]:
    """The pixels of every picture that `limner generate` writes with these, by name."""
    folder.mkdir()
    words = (str(trained / "outputs"), *words, "--output", str(folder / "a.png"))
    assert main(["generate", *words]) == 0
    return [np.array(Image.open(path)).astype(int) for path in sorted(folder.iterdir())]


def test_several_pictures_of_a_prompt_have_the_seeds_from_the_first_on(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["a red circle", "two blue squares"]
    drawn = drawn_by(trained, tmp_path / "n", *prompts, "--num_images", "3", "--seed", "5")
    names = [f"a-{number}.png" for number in range(6)]
    assert capsys.readouterr().out.split() == [str(tmp_path / "n" / name) for name in names]
    generator = limner.ImageGenerator(trained / "outputs")
    expected = generator.generate_batch(
        [prompt for prompt in prompts for _ in range(3)], seeds=[5, 6, 7] * 2
    )
    for one, other in zip(drawn, expected, strict=True):
        assert np.abs(one - np.array(other)).max() <= 1


def test_the_last_seed_is_followed_by_the_first(trained: Path, tmp_path: Path) -> None:
    flags = ["--num_images", "2", "--seed", str(2**63 - 1)]
    drawn = drawn_by(trained, tmp_path / "n", "a red circle", *flags)
    alone = limner.ImageGenerator(trained / "outputs").generate("a red circle", seed=0)
    assert np.abs(drawn[1] - np.array(alone)).max() <= 1


def test_drawings_of_an_earlier_command_stay_and_are_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", str(trained / "outputs"), "a red circle", "--device", "cpu"]
    words += ["--output", str(tmp_path / "a.png"), "--num_images"]
    assert main([*words, "4", "--sheet"]) == 0
    assert "earlier" not in capsys.readouterr().err
    Image.new("RGB", (4, 4)).save(tmp_path / "a-4.png")  # somebody's own
    assert main([*words, "2"]) == 0
    said = capsys.readouterr()
    assert said.out.split() == [str(tmp_path / "a-0.png"), str(tmp_path / "a-1.png")]
    left = "a-2.png, a-3.png, a-sheet.png"
    assert f"not overwritten, from an earlier command: {left}\n" in said.err
    assert len(list(tmp_path.iterdir())) == 6
    assert main([*words, "4", "--sheet"]) == 0
    assert "earlier" not in capsys.readouterr().err


@pytest.mark.parametrize("prompts", [["a red circle"], ["a red circle", "红苹果"]])
def test_a_sheet_shows_every_picture_beside_them(
    prompts: list[str], trained: Path, tmp_path: Path
) -> None:
    words = [str(trained / "outputs"), *prompts, "--num-images", "2", "--sheet"]
    assert main(["generate", *words, "--output", str(tmp_path / "a.jpg")]) == 0
    images = {f"a-{number}.jpg" for number in range(2 * len(prompts))}
    assert {path.name for path in tmp_path.iterdir()} == images | {"a-sheet.png"}
    with Image.open(tmp_path / "a-sheet.png") as sheet:
        labels = [f"{prompt} (seed {seed})" for prompt in prompts for seed in (0, 1)]
        assert json.loads(sheet.text["prompts"]) == labels  # type: ignore[attr-defined]
        assert sheet.width > 2 * 96


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (["--guidance_interval", "0.2", "0.8"], {"guidance_interval": (0.2, 0.8)}),
        (["--guidance-type", "apg"], {"guidance_type": "apg"}),
        (["--shift", "3"], {"shift": 3.0}),
        (["--negative_prompt", "a blue square"], {"negative_prompt": "a blue square"}),
        (["--negative-prompt=", "--num-inference-steps", "3"], {"num_inference_steps": 3}),
        (["--init_image", "START", "--strength", "0.5"], {"strength": 0.5}),
        (["--init-image", "START"], {"strength": 0.6}),
    ],
)
def test_flags_are_arguments_of_the_generator(
    words: list[str], same: dict, trained: Path, tmp_path: Path
) -> None:
    start = Image.effect_mandelbrot((20, 20), (-2, -1.5, 1, 1.5), 20).convert("RGB")
    start.save(tmp_path / "start.png")
    if "START" in words:
        words = [str(tmp_path / "start.png") if word == "START" else word for word in words]
        same = {**same, "init_image": start}
    steps = [] if "--num-inference-steps" in words else ["--num_inference_steps", "6"]
    (drawn,) = drawn_by(trained, tmp_path / "n", "a red circle", *steps, *words)
    generator = limner.ImageGenerator(trained / "outputs")
    expected = generator.generate("a red circle", **{"num_inference_steps": 6, **same})
    assert np.abs(drawn - np.array(expected)).max() <= 1


def test_an_earlier_checkpoint_guides(trained: Path, tmp_path: Path) -> None:
    outputs = trained / "outputs"
    flags = ["--guide", str(outputs / "checkpoint-3"), "--guidance_scale", "4"]
    (drawn,) = drawn_by(trained, tmp_path / "n", "a red circle", *flags)
    generator = limner.ImageGenerator(outputs, guide=outputs / "checkpoint-3")
    expected = generator.generate("a red circle", guidance_scale=4.0)
    assert np.array_equal(drawn, np.array(expected))
    plain = limner.ImageGenerator(outputs).generate("a red circle", guidance_scale=4.0)
    assert not np.array_equal(drawn, np.array(plain))


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (None, "a prompt must be text, not None"),
        (["a cat", "a dog"], "a prompt must be text, .*; use generate_batch for several prompts"),
    ],
)
def test_a_prompt_that_is_no_text_is_refused(prompt: Any, said: str, trained: Path) -> None:
    generator = limner.ImageGenerator(trained / "outputs")
    with pytest.raises(LimnerError, match=said):
        generator.generate(prompt)
    with pytest.raises(LimnerError, match="seed -1 is not between 0"):
        generator.generate("a cat", seed=-1)


@pytest.mark.usefixtures("float16_here")
def test_a_faster_type_draws_nearly_the_same(trained: Path, tmp_path: Path) -> None:
    prompts = ["a red circle", "two blue squares", "a"]
    slow = drawn_by(trained, tmp_path / "slow", *prompts)
    fast = drawn_by(trained, tmp_path / "fast", *prompts, "--dtype", "bfloat16")
    difference = np.abs(np.stack(slow) - np.stack(fast))
    assert difference.any()
    assert difference.mean() < 2


@pytest.mark.parametrize("words", [[], ["--interpolate", "3", "--end_seed", "2"]])
def test_compiled_code_sees_batches_of_one_size_and_draws_the_same(
    words: list[str], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["a red circle"] if words else ["a red circle", "two blue squares", "a"]
    expected = drawn_by(trained, tmp_path / "plain", *prompts, *words)
    sizes: set[int] = set()

    def compile(block: torch.nn.Module, dynamic: bool) -> None:  # the compiler takes seconds
        assert not dynamic
        block.register_forward_pre_hook(lambda _, inputs: sizes.add(len(inputs[0])))

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    monkeypatch.setattr(limner.ImageGenerator, "at_once", lambda *_: 2)
    monkeypatch.setattr("limner.inference.generator.why_not_compile", lambda _: None)
    drawn = drawn_by(trained, tmp_path / "compiled", *prompts, *words, "--compile")
    assert sizes == {4}  # two pictures, two texts
    assert np.abs(np.stack(drawn) - np.stack(expected)).max() <= 1
    monkeypatch.setattr("limner.inference.generator.why_not_compile", lambda _: "no compiler")
    with pytest.raises(LimnerError, match=r"does not work on this machine \(no compiler\)"):
        limner.ImageGenerator(trained / "outputs").compile()


@pytest.mark.parametrize(
    ("words", "ends"),
    [
        (["a red circle", "two blue squares"], ("two blue squares", 1)),
        (["a red circle", "--end_seed", "7"], ("a red circle", 7)),
        (["a red circle", "two blue squares", "--end-seed", "7"], ("two blue squares", 7)),
    ],
)
def test_pictures_between_prompts_and_seeds(
    words: list[str], ends: tuple[str, int], trained: Path, tmp_path: Path
) -> None:
    flags = ["--interpolate", "4", "--seed", "1", "--sheet"]
    drawn = drawn_by(trained, tmp_path / "n", *words, *flags)
    assert len(drawn) == 5  # the sheet comes last
    generator = limner.ImageGenerator(trained / "outputs")
    first, last = (
        generator.generate("a red circle", seed=1),
        generator.generate(ends[0], seed=ends[1]),
    )
    assert np.abs(drawn[0] - np.array(first)).max() <= 1
    assert np.abs(drawn[3] - np.array(last)).max() <= 1
    assert len({image.tobytes() for image in drawn[:4]}) == 4


# The Python interface


def test_the_generator_takes_a_solver_by_name(trained: Path) -> None:
    drawn = {
        name: np.array(
            limner.ImageGenerator(trained / "outputs", scheduler_type=name).generate("a")
        )
        for name in ("ddpm", "ddim", "euler")
    }
    assert limner.ImageGenerator(trained / "outputs", "ddim").sampling.scheduler_type == "ddim"
    assert not np.array_equal(drawn["ddpm"], drawn["ddim"])
    with pytest.raises(LimnerError, match="'plms' is not known; use one of ddpm, ddim, euler"):
        limner.ImageGenerator(trained / "outputs", scheduler_type="plms")
    assert tuple(SOLVERS) == choices.SOLVERS


def test_a_batch_is_its_pictures(trained: Path) -> None:
    generator = limner.ImageGenerator(trained / "outputs")
    prompts, seeds = ["a red circle", "two blue squares", ""], [3, 4, 5]
    batch = generator.generate_batch(prompts, seeds=seeds, num_inference_steps=3)
    assert [image.size for image in batch] == [(16, 16)] * 3
    for prompt, seed, image in zip(prompts, seeds, batch, strict=True):
        alone = generator.generate(prompt, num_inference_steps=3, seed=seed)
        assert np.abs(np.array(image).astype(int) - np.array(alone)).max() <= 1
    with pytest.raises(LimnerError, match="3 prompts need one seed, or one each; got 2"):
        generator.generate_batch(prompts, seeds=[1, 2])


def test_the_documented_names_train_save_and_draw(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from limner import ImageGenerator, Trainer, load_config

    monkeypatch.chdir(tmp_path)
    trainer = Trainer(load_config(trained / "tiny.yaml", ["training.output_dir=run"]))
    trainer.save_checkpoint("./outputs/final")
    names = {path.name for path in (tmp_path / "outputs" / "final").iterdir()}
    assert {"model.pt", "optimizer.pt", "training_state.json", "config.yaml"} <= names
    trainer.save_checkpoint("./outputs/final")  # again, in its place
    assert ImageGenerator("./outputs/final").generate("a").size == (16, 16)
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["final"]
    assert (
        set(dir(limner))
        >= set(limner.__all__)
        >= {"Trainer", "ImageGenerator", "load_config", "LimnerError"}
    )
    with pytest.raises(AttributeError, match="no attribute 'Trainor'"):
        limner.Trainor  # noqa: B018
