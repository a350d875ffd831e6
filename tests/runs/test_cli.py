"""The command line and the scripts: every flag of the contract does what it says."""

import contextlib
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated import made_up_run, pictures_in
from PIL import Image
from tiny import TINY

import limner
from limner.checkpoint.locate import checkpoints
from limner.cli import main
from limner.config import load_config
from limner.inference.generator import ImageGenerator
from limner.training.monitor.run_log import read_log
from limner.training.resume import resume_config

SCRIPTS = Path(__file__).parents[2] / "src" / "scripts"


pytestmark = pytest.mark.usefixtures("quick_end")


def script(name: str, *words: str, cwd: Path) -> str:
    """Runs one of src/scripts in this process; what it printed."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(cwd):
        patch.setattr(sys, "argv", [name, *words])
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    assert end.value.code == 0
    return out.getvalue()


def script_as_process(name: str, *words: str, cwd: Path) -> str:
    """Runs one of src/scripts as people do; what it printed."""
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / name), *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


# The scripts


def test_the_training_script_trains_and_goes_on_from_a_named_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    config = tmp_path / "configs" / "train_config.yaml"
    config.write_text(load_config(None, [*TINY, "training.max_steps=3"]).to_yaml(), "utf-8")
    words = "--config", "configs/train_config.yaml"
    printed = script_as_process("train.py", *words, cwd=tmp_path)
    assert "images/s" in printed
    outputs = tmp_path / "outputs"
    checkpoint = outputs / "checkpoint-3"
    for name in ("model.pt", "optimizer.pt", "training_state.json"):
        assert (checkpoint / name).is_file()
    words = *words, "--resume", "./outputs/checkpoint-3"
    printed = script("train.py", *words, "training.max_steps=5", cwd=tmp_path)
    assert "resumed at step 3" in printed
    assert [path.name for path in checkpoints(outputs)] == ["checkpoint-3", "checkpoint-5"]
    steps = [e["step"] for e in read_log(outputs / "log.jsonl") if e["kind"] == "train"]
    assert steps == [1, 2, 3, 4, 5]


def test_the_inference_script_takes_every_flag(trained: Path) -> None:
    script(
        "inference.py",
        *("--config", "tiny.yaml", "--checkpoint", "./outputs/checkpoint-6"),
        *("--prompt", "一个红色的圆", "--output", "drawn/by script.png"),
        *("--num_inference_steps", "3", "--height", "24", "--width", "16", "--seed", "42"),
        cwd=trained,
    )
    with Image.open(trained / "drawn" / "by script.png") as image:
        assert image.size == (16, 24)
        drawn = np.array(image)
    generator = limner.ImageGenerator(trained / "outputs")
    expected = generator.generate("一个红色的圆", 3, seed=42, height=24, width=16)
    assert np.abs(drawn.astype(int) - np.array(expected)).max() <= 1


@pytest.mark.parametrize("kind", ["coco", "custom"])
def test_the_preparing_script_takes_every_flag(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(5):
        Image.new("RGB", (8, 8), (50 * number, 0, 0)).save(source / f"{number}.jpg")
        (source / f"{number}.txt").write_text(f"red {number}", "utf-8")
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(5)]
    captions = [{"id": n, "image_id": n, "caption": f"red {n}"} for n in range(5)]
    annotations = json.dumps({"images": images, "annotations": captions})
    given = source / "captions_train.json"
    given.write_text(annotations, "utf-8")
    words = ["--input", str(given if kind == "coco" else source), "--output", "data"]
    printed = script("prepare_data.py", "--type", kind, *words, "--num_samples", "3", cwd=tmp_path)
    assert "3 pictures in data" in printed
    rows = json.loads((tmp_path / "data" / "metadata.json").read_text("utf-8"))
    assert [row["image"] for row in rows] == [f"images/image_{n:06d}.jpg" for n in (1, 2, 3)]
    assert {row["text"] for row in rows} < {f"red {n}" for n in range(5)}
    for row in rows:
        red = np.array(Image.open(tmp_path / "data" / row["image"]))[0, 0, 0]
        assert abs(int(red) - 50 * int(row["text"].split()[1])) < 10


@pytest.mark.parametrize(
    "statement", ["import limner", "import limner.cli as c; c.build_parser().format_help()"]
)
def test_help_and_import_wait_for_no_heavy_package(statement: str) -> None:
    heavy = ("torch", "accelerate", "numpy", "PIL", "pydantic", "tokenizers", "jinja2")
    program = f"import sys; {statement}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_the_program_and_the_module_answer_help() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "limner", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    for command in ("demo", "train", "generate", "prepare", "report"):
        assert command in done.stdout


# limner train


def test_a_run_leaves_what_a_person_looks_for(trained: Path) -> None:
    folder = trained / "outputs"
    names = ["config.yaml", "log.jsonl", "samples.png", "samples.json", "results.json"]
    for name in [*names, "report.html", "previews", "checkpoint-3", "checkpoint-6"]:
        assert (folder / name).exists(), name
    report = (folder / "report.html").read_text("utf-8")
    assert 'src="data:image/png;base64,' in report
    assert load_config(folder / "config.yaml") == load_config(trained / "tiny.yaml")


@pytest.mark.parametrize(
    "words",
    [
        ["training.max_steps=2", "training.batch_size=3"],
        ["--training.max_steps", "2", "--training.batch_size", "3"],
        ["--training.max_steps=2", "--training.batch_size=3"],
        ["--training.max_steps", "2", "--training.batch_size=3", "training.logging_steps=1"],
    ],
)
def test_any_key_can_be_set_in_every_usual_way(
    words: list[str], trained: Path, tmp_path: Path
) -> None:
    output = f"training.output_dir={tmp_path / 'run'}"
    assert (
        main(["train", *words[:2], "--config", str(trained / "tiny.yaml"), *words[2:], output]) == 0
    )
    config = load_config(tmp_path / "run" / "config.yaml")
    assert (config.training.max_steps, config.training.batch_size) == (2, 3)
    assert config.model == load_config(trained / "tiny.yaml").model


def test_a_tilde_is_the_home_folder_in_every_place(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    config = f"--config={trained / 'tiny.yaml'}"
    words = ["train", config, "training.output_dir=~/run", "cache.folder=~/cache"]
    assert main([*words, "training.max_steps=3"]) == 0
    assert main(["train", "--resume=~/run/checkpoint-3", "training.max_steps=6"]) == 0
    assert main(["generate", "--checkpoint=~/run", "a", "--device=cpu", "--output=~/a.png"]) == 0
    again = ["--init-image=~/a.png", "--strength=1", "--output=~/b.png"]
    assert main(["generate", "~/run", "a", "--device=cpu", *again]) == 0
    assert main(["export", "~/run", "--output=~/a.safetensors"]) == 0
    assert main(["report", "~/run"]) == 0
    found = {path.name for path in (tmp_path / "home").iterdir()}
    assert found - {"cache"} == {"run", "a.png", "b.png", "a.safetensors"}
    assert (tmp_path / "home" / "run" / "checkpoint-6").is_dir()
    assert list((tmp_path / "here").iterdir()) == []


def test_resume_latest_keeps_the_name_of_a_folder(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "🙂 run #2"
    shutil.copytree(trained / "outputs" / "checkpoint-6", folder / "checkpoint-6")
    config = resume_config("latest", None, [f"training.output_dir={folder}"])
    assert config is not None
    assert config.training.output_dir == str(folder)


def test_resume_latest_with_and_without_a_configuration(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, config = (
        f"training.output_dir={tmp_path / 'run'}",
        ["--config", str(trained / "tiny.yaml")],
    )
    assert main(["train", *config, output, "training.max_steps=2"]) == 0
    assert main(["train", *config, output, "training.max_steps=4", "--resume", "latest"]) == 0
    assert "resumed at step 2" in capsys.readouterr().out
    # The checkpoint carries its own configuration.
    assert main(["train", "--resume", "latest", output, "training.max_steps=5"]) == 0
    assert "resumed at step 4" in capsys.readouterr().out
    checkpoint = str(tmp_path / "run" / "checkpoint-5")
    assert main(["train", "--resume", checkpoint, "--training.max_steps", "6"]) == 0
    assert "resumed at step 5" in capsys.readouterr().out
    names = [path.name for path in checkpoints(tmp_path / "run")]
    assert names == ["checkpoint-4", "checkpoint-5", "checkpoint-6"]  # three are kept


def debugged(caplog: pytest.LogCaptureFixture) -> list[str]:
    said = [record.getMessage() for record in caplog.records if record.levelname == "DEBUG"]
    caplog.clear()
    return said


def test_debug_shows_shapes_and_ranges_through_the_model(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["--config", str(trained / "tiny.yaml"), f"training.output_dir={tmp_path / 'run'}"]
    assert main(["train", *words, "training.max_steps=1", "--log-level", "debug"]) == 0
    said = debugged(caplog)
    for part, before, after in (
        ("model", "[4, 3, 16, 16] float32 from ", "[4, 3, 16, 16] float32 from 0 to 0"),
        ("text_encoder", "[4, 24] int64 from 0 to ", "([4, 24, 64] float32 from "),
        ("denoiser.blocks.0", "[4, 16, 64] float32 from ", "[4, 16, 64] float32 from "),
        ("denoiser.blocks.1", "[4, 16, 64] float32 from ", "[4, 16, 64] float32 from "),
    ):
        (line,) = [message for message in said if message.startswith(f"{part}: ")]
        assert line.startswith(f"{part}: {before}")
        assert f" -> {after}" in line
        assert re.search(r" mean \S+.*, \d+\.\d\d ms$", line)
    assert main(["train", *words, "--resume", "latest", "training.max_steps=2"]) == 0
    assert debugged(caplog) == []
    assert (
        main(
            [
                "generate",
                str(tmp_path / "run"),
                "a",
                "--log-level",
                "debug",
                "--output",
                str(tmp_path / "a.png"),
            ]
        )
        == 0
    )
    # Two steps, each with the prompt and, for guidance, with the empty one.
    assert sum(m.startswith("model: [2, 3, 16, 16] float32") for m in debugged(caplog)) == 2


# limner report


def test_a_report_can_be_written_again(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained / "outputs", tmp_path / "run")
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").is_file()
    printed = capsys.readouterr().out
    assert str(run / "report.html") in printed
    assert "held-out prompts: " in printed


def draws_in(seconds: float, patch: pytest.MonkeyPatch) -> list[int]:
    """Each picture takes so many seconds of a clock that stands still otherwise; the numbers of
    pictures that are asked for."""
    now, asked = 0.0, list[int]()

    def draw(self: Any, prompts: list[str], **_: Any) -> list[Image.Image]:
        nonlocal now
        now += seconds * len(prompts)
        asked.append(len(prompts))
        return [Image.new("RGB", (16, 16)) for _ in prompts]

    patch.setattr(time, "monotonic", lambda: now)
    patch.setattr(ImageGenerator, "generate_batch", draw)
    return asked


def test_a_report_draws_what_two_minutes_allow_and_all_if_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_up_run(tmp_path, pictures_in(tmp_path / "data", 1000))
    (run / "config.yaml").write_bytes((run / "checkpoint-3" / "config.yaml").read_bytes())
    (run / "log.jsonl").touch()
    asked = draws_in(1, monkeypatch)
    assert main(["report", str(run)]) == 0
    assert 110 <= sum(asked) <= 120
    results = json.loads((run / "results.json").read_text("utf-8"))
    (trained, of_trained), (held_out, of_held_out) = results["drawn"].values()
    assert (trained + held_out, of_trained + of_held_out) == (sum(asked), 1000)
    assert trained / of_trained == pytest.approx(held_out / of_held_out, abs=0.02)
    said = capsys.readouterr().out
    assert "80 of 120 images generated, about 40s left" in said
    captions = f"of {of_trained} training captions and {held_out} of {of_held_out} held-out captio"
    assert f"recall of {trained} {captions}" in said
    assert f"limner report {run.as_posix()} --all measures every caption" in said

    asked = draws_in(0.01, monkeypatch)  # a fast machine: at most 400 of each split
    assert main(["report", str(run)]) == 0
    assert sum(asked) == min(400, of_trained) + min(400, of_held_out)
    assert f"recall of 400 of {of_trained} training captions" in capsys.readouterr().out

    asked = draws_in(1, monkeypatch)
    assert main(["report", str(run), "--all"]) == 0
    assert sum(asked) == 1000
    said = capsys.readouterr().out
    assert "--all" not in said
    assert "recall of" not in said


# The first sign of life


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it fails
from limner.cli import main
main({words})
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "photos"], "looking at the pictures in photos"),
        (["train", "--config", "tiny"], "starting"),
        (["train", "training.max_steps=3"], "starting"),
        (["estimate", "tiny"], "measuring a few updates"),
        (["demo"], "starting the demo"),
    ],
)
def test_something_is_said_before_torch_is_imported(words: list[str], said: str) -> None:
    without = WITHOUT_TORCH.format(words=words)
    done = subprocess.run([sys.executable, "-c", without], capture_output=True, text=True)
    assert done.stdout.splitlines() == [said]
    assert "import of torch halted" in done.stderr  # and not after it


def test_of_several_processes_one_says_it() -> None:
    second = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH.format(words=["train"])],
        capture_output=True,
        text=True,
        env=os.environ | {"RANK": "1"},
    )
    assert second.stdout == ""
