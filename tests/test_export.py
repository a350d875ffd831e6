"""What `limner export` writes draws the same: one file, and a folder that needs no Limner."""

import ast
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from made_up import made_up_checkpoint
from PIL import Image
from pretrained import (
    tiny_16_channels,
    tiny_autoencoder,
    tiny_bert,
    tiny_clip,
    tiny_dc,
    tiny_qwen,
    tiny_t5,
    tiny_t5gemma,
    tiny_taesd,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import limner
from limner import ImageGenerator
from limner.cli import main
from limner.diffusion.solvers import SOLVERS
from limner.errors import LimnerError
from limner.publishing.export import export, in_precision
from limner.publishing.standalone import standalone
from limner.weights_file import WeightsFile

PROMPTS = [
    "a small red circle",
    "Two BLUE squares <pad> <start>",
    "",
    "红苹果 " + "x" * 99 + "\ud800",
]
SEEDS = [1, 2, 3, 2**40]
LATENT = ["data.image_size=32", "model.patch_size=2"]
Pixels = np.ndarray


def text(folder: Path) -> list[str]:
    return [f"text_encoder.pretrained_model_name='{folder}'", "text_encoder.max_length=null"]


def vae(folder: Path) -> list[str]:
    return [f"vae.pretrained_model_name='{folder}'", *LATENT]


def pixels(pictures: list[Image.Image]) -> Pixels:
    return np.stack([np.array(picture) for picture in pictures]).astype(int)


def drawn_by_limner(checkpoint: Path, **options: Any) -> Pixels:
    """[4, H, W, 3]; the pictures differ, or they would show nothing."""
    generator = ImageGenerator(checkpoint, device="cpu", **options)
    drawn = pixels(generator.generate_batch(PROMPTS, seeds=SEEDS))
    assert min(np.abs(drawn[i] - drawn[0]).max() for i in (1, 2, 3)) > 8
    assert ((drawn > 0) & (drawn < 255)).mean() > 0.4, "what is black or white hides differences"
    return drawn


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Diffusers copies the code that it runs into a folder of the user's; here into another."""
    from diffusers.utils import dynamic_modules_utils

    folder = str(tmp_path_factory.mktemp("modules"))
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", folder)
    monkeypatch.setattr(sys, "path", list(sys.path))


def load(folder: Path, **options: Any) -> Any:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


# The folder, in an environment that has no Limner

ALONE = """
import importlib.util, pathlib, sys
assert importlib.util.find_spec("limner") is None, "Limner is here"
import torch
from diffusers import DiffusionPipeline
torch.set_num_threads(1)
prompts, seeds = eval(sys.argv[1])
for folder in map(pathlib.Path, sys.argv[2:]):
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    pictures = pipe(prompts, generator=generators).images
    for number, picture in enumerate(pictures):
        picture.save(folder.parent / f"{folder.name}-{number}.png")
assert not [name for name in sys.modules if name.partition(".")[0] == "limner"]
"""


def environment_without_limner(folder: Path) -> Path:
    """An environment of its own, with the packages that are installed here and not Limner; returns
    its interpreter.

    It names the folders that pip installed into. What an editable install adds to the path of this
    environment (Limner's source) it does not have; a Limner that was copied into those folders
    would be there, and ALONE ends at it. So this shows that the exported folder needs diffusers and
    what that needs, in the versions that are installed here. Other versions it does not show.
    """
    venv.create(folder, symlinks=os.name != "nt")
    scheme = {"base": str(folder), "platbase": str(folder)}
    packages = {Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}
    packages |= {Path(module.__file__).parents[1] for module in (torch, diffusers)}
    own = Path(sysconfig.get_path("purelib", "venv", scheme))
    (own / "packages.pth").write_text("\n".join(map(str, packages)), encoding="utf-8")
    scripts = Path(sysconfig.get_path("scripts", "venv", scheme))
    return scripts / Path("python.exe" if os.name == "nt" else "python")


def draw_without_limner(folders: list[Path], home: Path) -> None:
    python = environment_without_limner(home / "environment")
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    # -I: no PYTHONPATH, no user's packages, no current folder.
    words = [str(python), "-I", "-X", "utf8", "-c", ALONE, ascii((PROMPTS, SEEDS))]
    done = subprocess.run(
        [*words, *map(str, folders)], env=environment, capture_output=True, text=True, cwd=home
    )
    assert done.returncode == 0, done.stderr


def test_the_folder_draws_the_same_pictures_where_limner_is_not(tmp_path: Path) -> None:
    """Both architectures, both objectives, both kinds of text encoder, pixels and latents, and
    every key of `sampling` that is not its default in one case or another."""
    cases = {
        "modern": [
            "sampling.scheduler_type=unipc",
            "sampling.guidance_type=apg",
            "sampling.apg_eta=0.3",
            "sampling.apg_threshold=0.4",
            "sampling.apg_momentum=-0.75",
            "sampling.guidance_rescale=0.5",
            "sampling.guidance_interval=[0.2, 0.9]",
            "sampling.shift=2.0",
        ],
        "zero-star": [
            "sampling.guidance_type=cfg_zero_star",
            "sampling.guidance_scale=1.7",
            "sampling.zero_init_steps=1",
            "sampling.timestep_power=1.5",
        ],
        "dit": [
            "model.architecture=dit",
            "scheduler.prediction_type=v_prediction",
            "sampling.scheduler_type=ddpm",
        ],
        "latents": [
            "model.architecture=dit",
            *text(tiny_t5(tmp_path / "parts" / "t5")),
            *vae(tiny_autoencoder(tmp_path / "parts" / "vae")),
            "sampling.scheduler_type=heun",
        ],
        "clip": [
            *text(tiny_clip(tmp_path / "parts" / "clip", whole=True)),
            *vae(tiny_16_channels(tmp_path / "parts" / "vae16")),
        ],
    }
    folders, expected = [], []
    for name, overrides in cases.items():
        steps = "sampling.num_inference_steps=4"
        checkpoint = made_up_checkpoint(tmp_path / f"checkpoint-{name}", *overrides, steps)
        folders.append(export(checkpoint, tmp_path / name, "diffusers"))
        expected.append(drawn_by_limner(checkpoint))
    shutil.rmtree(tmp_path / "parts")  # the folder needs nothing outside of itself
    draw_without_limner(folders, tmp_path)
    for folder, there in zip(folders, expected, strict=True):
        files = [tmp_path / f"{folder.name}-{number}.png" for number in range(4)]
        assert np.abs(pixels([Image.open(file) for file in files]) - there).max() <= 1, folder.name


# The folder, in this process, for everything that there is to export


@pytest.mark.parametrize(
    ("prediction", "solver"),
    [
        *[("velocity", name) for name in SOLVERS],
        *[("sample", "dpmsolver++"), ("sample", "ddpm")],
        *[("epsilon", "ddpm"), ("epsilon", "dpmsolver++")],
        *[("v_prediction", "heun"), ("v_prediction", "ddim"), ("v_prediction", "unipc")],
    ],
)
def test_every_solver_and_prediction(tmp_path: Path, solver: str, prediction: str) -> None:
    checkpoint = made_up_checkpoint(
        tmp_path / "checkpoint",
        f"scheduler.prediction_type={prediction}",
        f"sampling.scheduler_type={solver}",
        f"sampling.shift={2.0 if prediction in ('velocity', 'sample') else 1.0}",
        "sampling.num_inference_steps=3",
        "sampling.guidance_scale=1.5",
        "sampling.guidance_interval=[0.3, 0.9]",
    )
    pipe = load(export(checkpoint, tmp_path / "out", "diffusers"))
    generator = ImageGenerator(checkpoint, device="cpu")
    there = pixels(generator.generate_batch(PROMPTS, seeds=SEEDS))
    assert np.abs(pixels(pipe(PROMPTS, generator=generators()).images) - there).max() <= 1
    other = ImageGenerator(checkpoint, "ddim" if solver == "heun" else "heun", device="cpu")
    there = pixels(other.generate_batch(PROMPTS[:1], seeds=SEEDS[:1], num_inference_steps=5))
    scheduler = type(pipe.scheduler)
    pipe.scheduler = scheduler.from_config(
        pipe.scheduler.config, solver=other.sampling.scheduler_type
    )
    here = pipe(PROMPTS[0], num_inference_steps=5, generator=generators()[0]).images
    assert np.abs(pixels(here) - there).max() <= 1


TEXTS: dict[str, Callable[..., Path]] = {
    "clip": tiny_clip, "t5": tiny_t5, "t5gemma": tiny_t5gemma, "qwen": tiny_qwen, "bert": tiny_bert
}  # fmt: skip


def tiny_old_vae(folder: Path) -> Path:
    """As sd-vae-ft-mse was published: .bin, and a config.json that does not say the scaling."""
    weights = load_file(tiny_autoencoder(folder) / "diffusion_pytorch_model.safetensors")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(weights, folder / "diffusion_pytorch_model.bin")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    del config["scaling_factor"]
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


VAES: dict[str, Callable[..., Path]] = {"taesd": tiny_taesd, "dc": tiny_dc, "bin": tiny_old_vae}


@pytest.mark.parametrize("name", [*TEXTS, *VAES])
def test_every_pretrained_part(tmp_path: Path, name: str) -> None:
    if name in TEXTS:
        overrides = text(TEXTS[name](tmp_path / name))
    else:
        overrides = vae(VAES[name](tmp_path / name))
    checkpoint = made_up_checkpoint(tmp_path / "checkpoint", *overrides)
    pipe = load(export(checkpoint, tmp_path / "out", "diffusers"))
    there = drawn_by_limner(checkpoint)
    assert np.abs(pixels(pipe(PROMPTS, generator=generators()).images) - there).max() <= 1
    assert not list((tmp_path / "out").rglob("*.bin"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up_checkpoint(tmp_path_factory.mktemp("made") / "checkpoint")


@pytest.fixture(scope="module")
def folder(checkpoint: Path) -> Path:
    return export(checkpoint, checkpoint.parent / "folder", "diffusers")


def test_the_averaged_weights_are_exported_under_the_checkpoints_names(
    checkpoint: Path, folder: Path
) -> None:
    exported: dict[str, torch.Tensor] = {}
    for part in ("transformer", "text_encoder"):
        exported |= load_file(folder / part / "diffusion_pytorch_model.safetensors")
    averaged = load_file(checkpoint / "ema.safetensors")
    assert exported.keys() == averaged.keys()
    assert all(torch.equal(exported[name], averaged[name]) for name in averaged)
    assert not torch.equal(
        averaged["denoiser.patch_embedding.weight"],
        torch.load(checkpoint / "model.pt")["denoiser.patch_embedding.weight"],
    )


def test_a_call_of_diffusers_pipelines(checkpoint: Path, folder: Path) -> None:
    pipe, generator = load(folder), ImageGenerator(checkpoint, device="cpu")
    there = pixels([generator.generate("a circle", 4, 2.0, 5, height=8, width=24)])
    seed = torch.Generator().manual_seed
    words = {"num_inference_steps": 4, "guidance_scale": 2.0, "height": 8, "width": 24}
    here = pipe("a circle", **words, generator=seed(5))
    assert np.abs(pixels(here.images) - there).max() <= 1
    latents = torch.randn(1, 3, 8, 24, generator=seed(5))
    assert pixels(pipe("a circle", **words, latents=latents).images) == pytest.approx(there, abs=1)
    seen: list[tuple[int, float]] = []
    array = pipe(
        "a circle", **words, generator=seed(5), output_type="np", return_dict=False,
        callback_on_step_end=lambda pipe, step, timestep, tensors: seen.append((step, timestep)),
    )[0]  # fmt: skip
    assert np.abs(array * 255 - there).max() <= 0.51
    assert seen == [(0, 1000.0), (1, 750.0), (2, 500.0), (3, 250.0)]
    tensor = pipe("a circle", **words, generator=seed(5), output_type="pt").images
    assert np.allclose(tensor.movedim(1, -1).numpy(), array)
    two = pipe(["a circle", "a square"], num_images_per_prompt=2, generator=generators()).images
    alone = pipe("a square", generator=generators()[2]).images
    assert np.abs(pixels(two)[2] - pixels(alone)[0]).max() <= 1
    # Guidance away from the prompt itself is none.
    same = pipe("a circle", negative_prompt="a circle", generator=seed(1), output_type="latent")
    none = pipe("a circle", guidance_scale=1.0, generator=seed(1), output_type="latent")
    assert (same.images - none.images).abs().max() < 1e-4


GUIDED: dict[str, dict[str, Any]] = {
    "scale": {"guidance_scale": 1.4},
    "interval": {"guidance_interval": (0.3, 0.8)},
    "zero star": {"guidance_type": "cfg_zero_star"},
    "apg": {"guidance_type": "apg"},
    "rescaled": {"guidance_rescale": 1.0},
}
TIMED: dict[str, dict[str, Any]] = {
    "shift": {"shift": 8.0},
    "power": {"timestep_power": 2.0},
    "zero init": {"zero_init_steps": 2},
}


@pytest.mark.parametrize("name", [*GUIDED, *TIMED])
@pytest.mark.parametrize("negative", [None, "two blue squares"])
def test_what_the_command_takes_the_call_takes(
    checkpoint: Path, folder: Path, name: str, negative: str | None
) -> None:
    pipe, generator = load(folder), ImageGenerator(checkpoint, device="cpu")
    usual = {"num_inference_steps": 5, "height": 12, "width": 20, "negative_prompt": negative}
    usual |= {"guidance_scale": 15.0}  # so that a setting that is not followed would be seen
    plain = pixels(generator.generate_batch(PROMPTS, seeds=SEEDS, **usual))
    asked, times = usual | GUIDED.get(name, {}), TIMED.get(name, {})
    there = pixels(generator.generate_batch(PROMPTS, seeds=SEEDS, **asked, **times))
    assert np.abs(there - plain).max() > 8
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **times)
    here = pipe(PROMPTS, generator=generators(), **asked).images
    assert np.abs(pixels(here) - there).max() <= 1


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"height": 9}, "height 9 is not a multiple of 4"),
        ({"prompt": []}, "a prompt and one picture"),
        ({"negative_prompt": ["a", "b"]}, "1 prompts, but 2 negative ones"),
        ({"generator": generators()}, "1 pictures, but 4 generators"),
        ({"output_type": "jpeg"}, "take pil, pt, np, or latent"),
        ({"latents": torch.zeros(1, 3, 8, 8)}, "(1, 3, 16, 16) is wanted"),
        ({"guidance_type": "cfg_zero"}, "take cfg, cfg_zero_star, apg"),
        ({"guidance_scale": -1.0}, "guidance_scale -1.0 is below 0"),
        ({"guidance_interval": (0.9, 0.1)}, "the lower one first"),
        ({"guidance_rescale": 2.0}, "not from 0 to 1"),
        ({"num_inference_steps": 0}, "num_inference_steps 0"),
        ({"callback_on_step_end": lambda *a: {"latents": 1}}, "cannot replace the latents"),
    ],
)
def test_what_the_call_cannot_do_is_told(folder: Path, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        load(folder)(**{"prompt": "a circle"} | asked)


def test_the_text_is_read_once_for_all_steps(folder: Path) -> None:
    pipe = load(folder)
    network = pipe.transformer
    states, mask = pipe.text_encoder(torch.tensor([[1, 5, 9, 0], [1, 7, 0, 0]]))
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([300.0, 900.0])
    whole = network(x, t, states, mask).sample
    assert torch.equal(network(x, t, network.read(states, mask)).sample, whole)
    seen: list[int] = []
    network.denoiser.blocks[0].text_kv.register_forward_hook(lambda *_: seen.append(1))
    pipe("a circle", num_inference_steps=6, negative_prompt="a square")
    assert len(seen) == 1


def test_the_folder_says_what_it_was_made_with(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    for module in (diffusers, limner, torch, transformers):
        assert index[f"_{module.__name__}_version"] == module.__version__
    for path in folder.rglob("*.py"):
        assert f"(Limner {limner.__version__})" in path.read_text("utf-8")


@pytest.mark.parametrize(
    ("prediction", "own", "stock"),
    [
        ("velocity", "euler", "FlowMatchEulerDiscreteScheduler"),
        ("sample", "euler", "FlowMatchEulerDiscreteScheduler"),
        ("epsilon", "ddim", "DDIMScheduler"),
        ("v_prediction", "ddim", "DDIMScheduler"),
        ("epsilon", "dpmsolver++", "DPMSolverMultistepScheduler"),
        ("v_prediction", "dpmsolver++", "DPMSolverMultistepScheduler"),
        ("v_prediction", "ddpm", "DDPMScheduler"),
    ],
)
def test_diffusers_own_schedulers_take_the_place_exactly(
    tmp_path: Path, prediction: str, own: str, stock: str
) -> None:
    times = ["sampling.shift=3.0", "sampling.timestep_power=1.5", "sampling.zero_init_steps=1"]
    times = times if prediction in ("velocity", "sample") else []
    checkpoint = made_up_checkpoint(
        tmp_path / "c", f"scheduler.prediction_type={prediction}",
        f"sampling.scheduler_type={own}", *times,
    )  # fmt: skip
    pipe = load(export(checkpoint, tmp_path / "out", "diffusers"))
    drawn = []
    for _ in range(2):
        found = pipe(PROMPTS, None, None, 10, generator=generators(), output_type="latent").images
        drawn.append(found / found.abs().max())
        pipe.scheduler = getattr(diffusers, stock).from_config(pipe.scheduler.config)
    assert (drawn[0] - drawn[1]).abs().max() < 1e-4


@pytest.mark.parametrize("stock", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_other_flow_schedulers_of_diffusers_go_to_the_same_picture(
    folder: Path, stock: str
) -> None:
    pipe = load(folder)
    own = pipe(PROMPTS, None, None, 50, generator=generators(), output_type="latent").images
    pipe.scheduler = getattr(diffusers, stock).from_config(pipe.scheduler.config)
    other = pipe(PROMPTS, None, None, 50, generator=generators(), output_type="latent").images
    assert (own - other).abs().max() < 0.02 * own.abs().max()


def test_older_libraries_find_what_they_look_for(folder: Path, tmp_path: Path) -> None:
    """What diffusers 0.35 and transformers 4, which are not installed here, stumbled over: the one
    could not load the folder, the other drew other pictures from it."""
    types = [p.annotation for p in inspect.signature(type(load(folder))).parameters.values()]
    assert set(types) == {inspect.Parameter.empty}
    settings = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text("utf-8"))
    assert settings["add_prefix_space"] is True
    checkpoint = made_up_checkpoint(tmp_path / "c", *text(tiny_clip(tmp_path / "clip", whole=True)))
    encoder = export(checkpoint, tmp_path / "out", "diffusers") / "text_encoder"
    names = load_file(encoder / "model.safetensors").keys()
    assert {name.partition(".")[0] for name in names} == {"text_model"}


# The code in the folder


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("pipeline", "LimnerPipeline"),
        ("scheduler", "LimnerScheduler"),
        ("text_encoder", "LimnerTextEncoder"),
        ("transformer", "LimnerModernTransformer"),
        ("transformer", "LimnerDiTTransformer"),
    ],
)
def test_the_code_needs_no_limner_and_defines_all_that_it_names(
    tmp_path: Path, module: str, name: str
) -> None:
    source = standalone(f"limner.publishing.for_diffusers.{module}", name)
    roots = {
        node.module.partition(".")[0] if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") is not None
    }
    outside = {root.partition(".")[0] for root in roots} - set(sys.stdlib_module_names)
    assert outside <= {"torch", "diffusers", "PIL", "numpy"}
    assert "Licensed under the Apache License, Version 2.0" in source
    path = tmp_path / f"{name}.py"
    path.write_text(source, encoding="utf-8")
    # Undefined and unused names, the order of imports, the length of lines.
    words = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F,I"]
    done = subprocess.run(
        [*words, "--line-length", "100", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_code_is_limners_own_to_the_letter(folder: Path) -> None:
    from limner.models import modern

    source = Path(modern.__file__).read_text(encoding="utf-8")
    exported = (folder / "transformer" / "modeling_limner_modern.py").read_text(encoding="utf-8")
    for definition in ast.parse(source).body:
        if isinstance(definition, ast.ClassDef | ast.FunctionDef):
            assert (ast.get_source_segment(source, definition) or "") in exported


def test_two_definitions_of_one_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from limner.publishing import standalone as module

    for name, content in {
        "one": "def f():\n    return 1\n",
        "two": "from limner.one import f\n\n\ndef g():\n    return f() + h\n\n\nh = 1\n",
        "three": "from limner.two import g\n\n\ndef f():\n    return g()\n",
        "four": "def f():\n    from limner.one import f\n    return f()\n",
    }.items():
        (tmp_path / f"{name}.py").write_text(content, encoding="utf-8")
    monkeypatch.setattr(module, "files", lambda package: tmp_path)
    names: dict[str, Any] = {}
    exec(standalone("limner.two", "g"), names)
    assert names["g"]() == 2
    with pytest.raises(ValueError, match=r"f is defined in limner\.three and in limner\.one"):
        standalone("limner.three", "f")
    with pytest.raises(ValueError, match=r"f imports from limner\.one inside of it"):
        standalone("limner.four", "f")


# Precision


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("architecture", ["modern", "dit"])
def test_half_precision_is_half_the_size_and_nearly_the_picture(
    tmp_path: Path, dtype: str, architecture: str
) -> None:
    clip = tiny_clip(tmp_path / "clip")
    made = [f"model.architecture={architecture}", *text(clip)]
    checkpoint = made_up_checkpoint(tmp_path / "checkpoint", *made)
    there = drawn_by_limner(checkpoint)
    full = export(checkpoint, tmp_path / "full.safetensors")
    file = export(checkpoint, tmp_path / "half.safetensors", dtype=dtype)
    assert file.stat().st_size < 0.55 * full.stat().st_size
    kinds = {str(tensor.dtype) for tensor in load_file(file).values()}
    assert kinds == {f"torch.{dtype}"}
    assert np.abs(drawn_by_limner(file) - there).mean() < 0.5
    out = export(checkpoint, tmp_path / "out", "diffusers", dtype)
    for options in ({}, {"dtype": getattr(torch, dtype)}):
        pipe = load(out, **options)
        assert np.abs(pixels(pipe(PROMPTS, generator=generators()).images) - there).mean() < 2


# One file of weights


def test_one_file_draws_the_same_to_the_bit(checkpoint: Path, tmp_path: Path) -> None:
    words = ["export", str(checkpoint), "--output", str(tmp_path / "model.safetensors")]
    assert main(words) == 0
    file = tmp_path / "model.safetensors"
    assert np.array_equal(drawn_by_limner(file), drawn_by_limner(checkpoint))
    assert file.stat().st_size < 1.1 * (checkpoint / "ema.safetensors").stat().st_size
    picture = tmp_path / "a.png"
    assert (
        main(["generate", str(file), "a small red circle", "--seed", "1", "--output", str(picture)])
        == 0
    )
    assert np.array_equal(pixels([Image.open(picture)])[0], drawn_by_limner(checkpoint)[0])


def test_the_file_says_what_it_is_to_any_reader(checkpoint: Path, tmp_path: Path) -> None:
    file = export(checkpoint, tmp_path / "folder")
    assert file == tmp_path / "folder" / "limner.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    config = json.loads(metadata["config"])
    assert config["model"]["hidden_size"] == 64
    assert config["cache"]["folder"] == "./cache", "where things were is nobody's business"
    assert json.loads(metadata["tokenizer"])["model"]["type"] == "BPE"
    assert json.loads(metadata["training"]) == {"step": 3, "images": 12, "seconds": 4.5}
    found = WeightsFile.open(file)
    assert found.config.model.hidden_size == 64
    averaged = load_file(checkpoint / "ema.safetensors")
    assert found.tensors().keys() == averaged.keys()
    again = WeightsFile.open(export(file, tmp_path / "again.safetensors"))
    assert (again.sha256, again.config) == (found.sha256, found.config)


def test_a_file_that_is_damaged_or_foreign_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    file = export(checkpoint, tmp_path / "a.safetensors")
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(LimnerError, match="their checksum differs"):
        ImageGenerator(file, device="cpu")
    file.write_bytes(content[:-50])
    with pytest.raises(LimnerError, match="cannot be read as safetensors"):
        ImageGenerator(file, device="cpu")
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.ones(1)}, other)
    with pytest.raises(LimnerError, match="none that Limner exported"):
        ImageGenerator(other, device="cpu")
    with pytest.raises(LimnerError, match="is no earlier export"):
        export(checkpoint, other)
    assert load_file(other)["a"] == 1


def test_a_file_of_a_model_with_pretrained_parts_finds_them(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path / "clip")
    checkpoint = made_up_checkpoint(tmp_path / "checkpoint", *text(clip))
    there = drawn_by_limner(checkpoint)
    file = export(checkpoint, tmp_path / "a.safetensors")
    assert np.array_equal(drawn_by_limner(file), there)
    moved = clip.rename(tmp_path / "elsewhere")
    with pytest.raises(LimnerError, match="is no folder"):
        ImageGenerator(file, device="cpu")
    assert np.array_equal(drawn_by_limner(file, text_encoder=moved), there)
    # And writing weights alone asks for no pretrained part.
    export(checkpoint, tmp_path / "b.safetensors")


# Whole or not at all


def test_a_folder_is_replaced_only_by_an_export_of_its_own_kind(
    checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export(checkpoint, out, "diffusers")  # an empty folder may be filled
    export(checkpoint, out, "diffusers")
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(LimnerError, match="holds more than an earlier export"):
        export(checkpoint, out, "diffusers")
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"
    with pytest.raises(LimnerError, match="holds more than an earlier export"):
        export(checkpoint, checkpoint, "diffusers")


@pytest.mark.parametrize("format", ["diffusers", "safetensors"])
def test_an_export_that_fails_leaves_what_was_there(
    checkpoint: Path, tmp_path: Path, format: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from limner import weights_file
    from limner.publishing import diffusers_folder

    out = tmp_path / ("out" if format == "diffusers" else "out.safetensors")
    export(checkpoint, out, format)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for module in (diffusers_folder, weights_file):
        monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        export(checkpoint, out, format, "float16")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_a_real_full_disk_is_told_in_a_sentence(
    checkpoint: Path, tmp_path: Path, name: str
) -> None:
    """safetensors has an error of its own for it. (Here a file may have 20 kB, a part of them.)"""
    resource = pytest.importorskip("resource", reason="limits of this kind are POSIX")
    words = ["export", str(checkpoint), "--output", str(tmp_path / name)]
    words += ["--format", "diffusers"] if name == "out" else []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    limited = (
        "import resource, sys; from limner.cli import main\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, {limits[1]}))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", limited, *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr
    assert "check the path, the space" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_wrote_and_how_to_load_it(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["it's.safetensors"], ["out", "--format", "diffusers", "--dtype", "bfloat16"]):
        assert main(["export", str(checkpoint), "--output", *words]) == 0
        sizes, _, snippet = capsys.readouterr().out.partition("\n\n")
        written = tmp_path / words[0]
        files = [p for p in written.rglob("*") if p.is_file()] or [written]
        for path in files:
            assert f"{path.stat().st_size:>14,}  " in sizes
            assert path.name in sizes
        assert ("bytes in all" in sizes) == (len(files) > 1)
        exec(snippet, {})
        assert (tmp_path / "output.png").is_file()
        (tmp_path / "output.png").unlink()


def test_the_weights_of_the_last_update_are_there_if_asked_for(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "last.safetensors"
    words = ["--output", str(out), "--weights", "last"]
    assert main(["export", str(checkpoint), *words]) == 0
    last = torch.load(checkpoint / "model.pt")
    assert all(torch.equal(tensor, last[name]) for name, tensor in load_file(out).items())
    assert main(["export", str(out), *words]) == 2
    assert "holds one set of weights" in capsys.readouterr().err


def test_what_cannot_be_exported_is_told(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(LimnerError, match="no checkpoint at"):
        export(tmp_path / "no", out)
    with pytest.raises(LimnerError, match="dtype 'int8' is not known; take one of float32"):
        export(checkpoint, out, dtype="int8")
    with pytest.raises(LimnerError, match="format 'onnx' is not known; take one of safetensors"):
        export(checkpoint, out, "onnx")  # type: ignore[arg-type]
    with pytest.raises(LimnerError, match=r"denoiser\.a holds numbers that float16 does not have"):
        in_precision({"denoiser.a": torch.tensor([1e6])}, "float16")
    incomplete = shutil.copytree(checkpoint, tmp_path / "incomplete")
    (incomplete / "config.yaml").unlink()
    with pytest.raises(LimnerError, match=r"not a complete checkpoint: config\.yaml missing"):
        export(incomplete, out)
    assert not out.exists()


# The guide


def test_what_the_guide_says_to_type_works_as_typed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = (Path(__file__).parents[1] / "docs" / "publishing.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint, tmp_path / "outputs" / "demo")
    done = []
    for language, content in re.findall(r"^```(\w+)\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL):
        if language == "python" and "HfApi" not in content:
            exec(content, {})
            done.append("python")
        for line in content.splitlines() if language == "bash" else ():
            words = shlex.split(line, comments=True)
            sends = words[1] == "publish" and "--dry-run" not in words
            if words[0] == "limner" and not sends and words[1] != "generate-classes":
                assert main(words[1:]) == 0
                done.append(words[1])
    assert done == [*("export", "export", "generate", "python", "export", "python"), "publish"]
    assert (tmp_path / "output.png").is_file()
