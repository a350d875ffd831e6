"""`limner export --format onnx`: a folder that draws what `limner generate` does, without it."""

import functools
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from made_up import made_up_checkpoint, made_up_in_latents
from PIL import Image
from pretrained import tiny_bert
from shown import ROOT
from web_pages import apart

from limner import ImageGenerator
from limner.apps.onnx_folder import build
from limner.apps.onnx_folder.build import export_onnx
from limner.apps.onnx_folder.graphs import Graph, to_onnx
from limner.apps.onnx_folder.weights import Precision, stored_in
from limner.cli import main
from limner.diffusion.solvers import SOLVERS
from limner.errors import LimnerError
from limner.inference.saving import how_drawn

PROMPTS = ["a small red circle", "红苹果", "Two BLUE  squares <pad>", ""]
OVERRIDES = {
    # As the default settings have it, and with a part of the steps guided.
    "modern": (
        *("scheduler.prediction_type=velocity", "sampling.scheduler_type=dpmsolver++"),
        *("sampling.num_inference_steps=4", "sampling.guidance_scale=2.5"),
        *("sampling.guidance_interval=[0.3, 0.9]", "sampling.timestep_power=1.3"),
        "sampling.shift=1.5",
    ),
    "dit": (
        *("model.architecture=dit", "scheduler.objective=diffusion"),
        *("scheduler.prediction_type=sample", "sampling.num_inference_steps=4"),
    ),
    "student": (
        *("model.flow_map=true", "sampling.scheduler_type=ddim", "sampling.guidance_scale=1.0"),
        "sampling.num_inference_steps=2",
    ),
}
KINDS = (*OVERRIDES, "latents", "bert")
NETWORKS = ("text_encoder.onnx", "denoiser.onnx")
ALONE = """
import runpy, sys
for name in sys.argv.pop(1).split(","):
    sys.modules[name] = None
program = sys.argv.pop(1)
sys.argv[0] = program
runpy.run_path(program, run_name="__main__")
"""
Exported = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The name of a kind of model -> a checkpoint, and its folder; only to be read."""
    home = tmp_path_factory.mktemp("ÖNNX")

    @functools.cache
    def checkpoint(kind: str) -> Path:
        run = home / kind / "checkpoint-3"
        if kind == "latents":  # with CLIP, whose own summary is read
            return made_up_in_latents(run, home / "parts")
        if kind == "bert":
            reader = tiny_bert(home / "bert_parts")
            named = f"text_encoder.pretrained_model_name='{reader}'"
            return made_up_checkpoint(run, named, "text_encoder.max_length=null")
        return made_up_checkpoint(run, *OVERRIDES[kind])

    @functools.cache
    def of(kind: str) -> tuple[Path, Path]:
        folder = checkpoint(kind)
        return folder, export_onnx(folder, home / f"{kind} 图")

    return of


@functools.cache
def drawer(folder: Path) -> Any:
    """The model of a folder, opened by the program in it."""
    spec = importlib.util.spec_from_file_location(f"draw_{abs(hash(folder))}", folder / "draw.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Drawer()


def images(pixels: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(one) for one in pixels]


def limner(checkpoint: Path, prompts: list[str] = PROMPTS, seed: int = 3, **settings: Any) -> list:
    """What `limner generate` draws."""
    solver = settings.pop("scheduler_type", None)
    generator = ImageGenerator(checkpoint, solver, device="cpu")
    drawn = generator.generate_batch(prompts, seeds=seed, **settings)
    arrays = np.stack([np.asarray(one) for one in drawn])
    assert ((arrays > 0) & (arrays < 255)).mean() > 0.3, "what is black or white hides differences"
    return drawn


def alone(folder: Path, *words: str, without: str = "torch,limner") -> subprocess.CompletedProcess:
    """draw.py in a process in which importing these packages fails."""
    command = [sys.executable, "-c", ALONE, without, str(folder / "draw.py"), *words]
    return subprocess.run(command, capture_output=True, encoding="utf-8", cwd=folder.parent)


def listed(folder: Path, *names: str) -> None:
    """The manifest of a folder again, after these files were written."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    for name in names:
        manifest["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": ""}
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")


# What is drawn


@pytest.mark.parametrize("kind", KINDS)
def test_it_draws_what_generate_draws_without_torch_and_limner(
    exported: Exported, kind: str, tmp_path: Path
) -> None:
    checkpoint, folder = exported(kind)
    without = "torch,limner,transformers,diffusers,safetensors,onnx"
    if kind not in ("latents", "bert"):
        without += ",tokenizers"
    output = tmp_path / "a picture.png"
    words = [*PROMPTS[:2], "--seed", "7", "--num_images", "2", "--output", str(output)]
    done = alone(folder, *words, without=without)
    assert done.returncode == 0, done.stderr
    files = [tmp_path / f"a picture-{i}.png" for i in range(4)]
    assert done.stdout.split("\n")[:-1] == list(map(str, files))
    prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    there = ImageGenerator(checkpoint, device="cpu").generate_batch(prompts, seeds=[7, 8, 7, 8])
    assert apart([Image.open(file) for file in files], there)[0] <= 1
    assert apart([there[0]], [there[2]])[0] > 4, "the prompt matters"
    how = how_drawn(Image.open(files[3]))
    assert (how["prompt"], how["seed"], how["model_step"]) == ("红苹果", 8, 3)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", ["modern", "dit"])
def test_every_solver(exported: Exported, kind: str, solver: str) -> None:
    checkpoint, folder = exported(kind)
    here = drawer(folder)(PROMPTS, 3, scheduler_type=solver, num_inference_steps=6)
    there = limner(checkpoint, scheduler_type=solver, num_inference_steps=6)
    assert apart(images(here), there)[0] <= 1


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance_scale": 1.0},
        {"guidance_type": "cfg_zero_star", "zero_init_steps": 1},
        {"guidance_type": "apg", "apg_threshold": 0.4, "apg_eta": 0.2},
        {"guidance_rescale": 0.8, "guidance_interval": (0.0, 1.0)},
        {"negative_prompt": "a green cross"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_guidance_is_that_of_limner(exported: Exported, settings: dict[str, Any]) -> None:
    checkpoint, folder = exported("modern")
    asked = {"guidance_scale": 6.0, **settings}
    here, there = drawer(folder)(PROMPTS, 3, **asked), limner(checkpoint, **asked)
    assert apart(images(here), there)[0] <= 1
    assert apart(there, limner(checkpoint))[0] > 4, "the setting matters"


def test_a_student_draws_in_the_steps_that_it_knows(exported: Exported) -> None:
    checkpoint, folder = exported("student")
    for steps in (1, 2, 4):
        here = drawer(folder)(PROMPTS, 2**40 + 7, num_inference_steps=steps)
        there = limner(checkpoint, seed=2**40 + 7, num_inference_steps=steps)
        assert apart(images(here), there)[0] <= 1
    with pytest.warns(UserWarning, match="distilled for 1, 2, 4, 8 steps"):
        drawer(folder)("a circle", num_inference_steps=3)
    for asked, said in (
        ({"guidance_scale": 2.0}, "guidance_scale is 2.0; it must be 1"),
        ({"negative_prompt": "a square"}, "takes no negative_prompt"),
        ({"scheduler_type": "heun"}, "must be ddim"),
    ):
        with pytest.raises(ValueError, match=said):
            drawer(folder)("a circle", **asked)


@pytest.mark.parametrize("kind", ["modern", "latents"])
def test_a_picture_does_not_depend_on_the_others(exported: Exported, kind: str) -> None:
    draw = drawer(exported(kind)[1])
    together = draw(PROMPTS, 5, batch_size=4)
    assert (together.dtype, len(together), together.shape[-1]) == (np.uint8, 4, 3)
    for size in (1, 3):
        assert np.abs(draw(PROMPTS, 5, batch_size=size).astype(int) - together).max() <= 1
    alone = draw(PROMPTS[1], 5)
    assert np.abs(alone[0].astype(int) - together[1]).max() <= 1
    counted = draw(PROMPTS[0], 4, num_images=2)
    assert np.abs(counted[1].astype(int) - together[0]).max() <= 1


@pytest.mark.parametrize(("precision", "decibels"), [("int8", 35.0), ("float16", 55.0)])
def test_less_precise_weights_draw_nearly_the_same(
    exported: Exported, tmp_path: Path, precision: Precision, decibels: float
) -> None:
    checkpoint, exact = exported("modern")
    folder = Path(shutil.copytree(exact, tmp_path / "copy"))
    for name in NETWORKS:
        onnx.save_model(stored_in(precision, onnx.load(exact / name)), folder / name)
        assert (folder / name).stat().st_size < 0.75 * (exact / name).stat().st_size
    listed(folder, *NETWORKS)
    assert apart(images(drawer(folder)(PROMPTS, 3)), limner(checkpoint))[1] >= decibels


# The folder


def test_it_holds_what_is_public_and_no_more(exported: Exported) -> None:
    checkpoint, folder = exported("modern")
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("config.json", "denoiser.onnx", "draw.py", "manifest.json", "text_encoder.onnx"),
        "tokenizer.json",
    }
    private = [str(ROOT), str(checkpoint.parent.parent), str(Path.home()), "site-packages"]
    for path in folder.iterdir():
        data = path.read_bytes()
        assert [word for word in private if word.encode() in data] == [], path.name
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["credits"]["license"] == "apache-2.0"
    assert (config["name"], config["step"], config["size"]) == ("modern", 3, 16)
    words = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F,I"]
    words += ["--line-length", "100", str(folder / "draw.py")]
    done = subprocess.run(words, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout


def test_the_networks_are_plain_onnx_of_any_batch(exported: Exported) -> None:
    for kind in ("modern", "latents"):
        for path in exported(kind)[1].glob("*.onnx"):
            model = onnx.load(path)
            assert [(one.domain, one.version) for one in model.opset_import] == [("", 20)]
            for value in model.graph.input:
                assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
            onnx.checker.check_model(model, full_check=True)


def test_large_weights_lie_beside(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, folder = exported("modern")
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    monkeypatch.setattr(build, "MOST_BYTES", 1000)
    model = onnx.load(folder / "denoiser.onnx")
    (copy / "denoiser.onnx").unlink()
    build.save(copy / "denoiser.onnx", model)
    listed(copy, "denoiser.onnx", "denoiser.onnx.data")
    assert apart(images(drawer(copy)(PROMPTS, 3)), limner(checkpoint))[0] <= 1


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("denoiser.onnx", lambda data: data[:-100], "denoiser.onnx has .* bytes; copy the folder"),
        ("text_encoder.onnx", None, "text_encoder.onnx is missing; copy the folder"),
        ("denoiser.onnx", lambda data: b"\xff" * len(data), "denoiser.onnx cannot be opened"),
        ("config.json", None, "config.json is missing; copy the folder"),
        ("config.json", lambda data: data[:-9], "config.json is damaged"),
        ("config.json", lambda data: data.replace(b'"format": 1', b'"format": 9'), "has format 9"),
        ("tokenizer.json", lambda data: b"{}", "tokenizer.json cannot be read"),
    ],
)
def test_a_damaged_folder_says_what_is_wrong(
    exported: Exported,
    tmp_path: Path,
    name: str,
    damage: Callable[[bytes], bytes] | None,
    said: str,
) -> None:
    copy = Path(shutil.copytree(exported("student")[1], tmp_path / "copy"))
    data = (copy / name).read_bytes()
    (copy / name).unlink()
    if damage:
        (copy / name).write_bytes(damage(data))
    with pytest.raises(ValueError, match=said):
        drawer(copy)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"prompts": []}, "there is no prompt"),
        ({"prompts": ["a", 3]}, "a prompt must be text, not int"),
        ({"seed": -1}, r"seed is -1; it must be from 0 to 2\^63 - 1"),
        ({"num_images": 0}, "num_images is 0; it must be at least 1"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0; it must be 1 or more"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0; it must be 0 or more"),
        ({"guidance_interval": (0.9, 0.1)}, "the first below the second"),
        ({"guidance_type": "magic"}, "must be one of cfg, cfg_zero_star, apg"),
        ({"scheduler_type": "magic"}, "must be one of ddpm, ddim, euler"),
        ({"shift": 0.0}, "shift is 0.0; it must be above 0"),
        ({"magic": 1}, "unknown setting magic; use one of num_inference_steps"),
    ],
)
def test_what_cannot_be_drawn_is_said(exported: Exported, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        drawer(exported("modern")[1])(**{"prompts": "a circle"} | asked)


def test_what_a_path_of_diffusion_has_not(exported: Exported) -> None:
    draw = drawer(exported("dit")[1])
    for asked in ({"shift": 2.0}, {"zero_init_steps": 1}, {"guidance_type": "cfg_zero_star"}):
        with pytest.raises(ValueError, match="on a diffusion path"):
            draw("a circle", **asked)
    with pytest.raises(ValueError, match="num_inference_steps is 1001"):
        draw("a circle", num_inference_steps=1001)


def test_a_long_prompt_is_cut_with_a_warning(exported: Exported) -> None:
    checkpoint, folder = exported("modern")
    long = ["red circle " * 30]
    with pytest.warns(UserWarning, match="tokens was truncated to 24: red circle"):
        here = drawer(folder)(long, 3)
    assert apart(images(here), limner(checkpoint, long))[0] <= 1


# Its command


def test_the_command_in_it(exported: Exported, tmp_path: Path) -> None:
    checkpoint, folder = exported("modern")
    output = tmp_path / "new" / "apple.png"
    words = ["a red apple", "--steps", "3", "--guidance-scale", "1.5", "--output", str(output)]
    done = alone(folder, *words)
    assert (done.returncode, done.stdout) == (0, f"{output}\n"), done.stderr
    there = limner(checkpoint, ["a red apple"], seed=0, num_inference_steps=3, guidance_scale=1.5)
    assert apart([Image.open(output)], there)[0] <= 1
    assert how_drawn(Image.open(output))["sampling"]["num_inference_steps"] == 3
    assert alone(folder, *words).returncode == 0, "its own picture is replaced"
    Image.new("RGB", (8, 8)).save(output)
    for more, said in (
        ([], "already exists and was not drawn by this"),
        (["--output", "a.jpg"], "does not end in .png"),
        (["--output", "b.png", "--num_images", "0"], "num_images is 0"),
        (["--output", "b.png", "--folder", str(tmp_path)], "config.json is missing"),
    ):
        done = alone(folder, *words, *more)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert said in done.stderr
    assert Image.open(output).size == (8, 8)
    done = alone(folder, *words, "--output", "c.png", without="torch,limner,onnxruntime")
    assert (done.returncode, "pip install onnxruntime" in done.stderr) == (2, True)


def test_the_flags_are_those_of_generate(exported: Exported) -> None:
    done = alone(exported("modern")[1], "--help")
    own = {"--batch_size", "--threads", "--folder", "--steps", "--help"}
    flags = {word.strip("[],") for word in done.stdout.split() if word.startswith(("--", "[--"))}
    plain = {flag for flag in flags if "_" in flag or "-" not in flag.strip("-")}
    help_of = subprocess.run(
        [sys.executable, "-m", "limner", "generate", "--help"],
        capture_output=True,
        encoding="utf-8",
    )
    assert "--guidance_interval" in plain
    assert [flag for flag in plain - own if flag not in help_of.stdout] == []


# The command that writes it


def test_only_an_earlier_export_is_replaced(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, folder = exported("student")
    output = Path(shutil.copytree(folder, tmp_path / "out"))
    words = ["export", str(checkpoint), "--format", "onnx", "--output", str(output)]
    assert main([*words, "--dtype", "bfloat16"]) == 2
    assert "use one of int8, float16, float32" in capsys.readouterr().err
    with (output / "draw.py").open("a", encoding="utf-8") as file:
        file.write("# mine\n")
    assert main(words) == 2
    assert "is not an earlier export" in capsys.readouterr().err
    assert (output / "draw.py").read_text("utf-8").endswith("# mine\n")
    shutil.copyfile(folder / "draw.py", output / "draw.py")
    assert main([*words, "--dtype", "int8", "--weights", "last"]) == 0
    said = capsys.readouterr().out
    assert "denoiser.onnx" in said
    assert "draw.py" in said.splitlines()[-1]
    assert json.loads((output / "config.json").read_text("utf-8"))["weights"] == "int8"
    assert apart(images(drawer(output)(PROMPTS, 3)), limner(checkpoint))[0] > 4, "the last weights"


def test_what_is_not_converted_is_said_with_a_way(exported: Exported, tmp_path: Path) -> None:
    import torch

    class Unknown(torch.nn.Module):
        def forward(self, latents: torch.Tensor) -> torch.Tensor:
            return torch.fft.fft(latents).real if latents.sum() > 0 else latents

    graph = Graph(Unknown(), {"latents": torch.ones(2, 1, 4, 4)}, ("pictures",))
    with pytest.raises(LimnerError, match=r"the decoder cannot be converted to ONNX") as told:
        to_onnx(graph, "decoder")
    assert "use --format diffusers" in str(told.value)
