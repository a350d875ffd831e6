"""The folder that `limner export` writes draws the same, and needs no Limner."""

import ast
import functools
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from exported import (
    PROMPTS,
    SEEDS,
    drawn_by_limner,
    generators,
    keep_modules_in,
    load,
    pixels,
    text,
    vae,
)
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
from safetensors.torch import load_file

import limner
from limner import ImageGenerator
from limner.apps.publishing.export import export
from limner.apps.publishing.standalone import standalone
from limner.diffusion.solvers import SOLVERS


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        keep_modules_in(tmp_path_factory.mktemp("modules"), patch)
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up_checkpoint(tmp_path_factory.mktemp("made") / "checkpoint")


@pytest.fixture(scope="module")
def folder(checkpoint: Path) -> Path:
    return export(checkpoint, checkpoint.parent / "folder", "diffusers")


Exported = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """What a model predicts -> a checkpoint of it, and the folder that it was exported to."""

    @functools.cache
    def of(prediction: str) -> tuple[Path, Path]:
        home = tmp_path_factory.mktemp(prediction)
        checkpoint = made_up_checkpoint(
            home / "checkpoint",
            f"scheduler.prediction_type={prediction}",
            f"sampling.shift={2.0 if prediction in ('velocity', 'sample') else 1.0}",
            "sampling.num_inference_steps=3",
            "sampling.guidance_scale=1.5",
            "sampling.guidance_interval=[0.3, 0.9]",
        )
        return checkpoint, export(checkpoint, home / "out", "diffusers")

    return of


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
        "few-steps": [
            "model.flow_map=true",
            "training.init_from=its teacher",
            "sampling.guidance_scale=1",
            "sampling.scheduler_type=ddim",
            "sampling.shift=2.0",
        ],
        "few-steps-of-any-guidance": [
            "model.flow_map=true",
            "training.init_from=its teacher",
            "distill.guidance_scale=[1, 4]",
            "sampling.guidance_scale=2.5",
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
def test_every_solver_and_prediction(exported: Exported, solver: str, prediction: str) -> None:
    checkpoint, folder = exported(prediction)
    generator = ImageGenerator(checkpoint, solver, device="cpu")
    there = pixels(generator.generate_batch(PROMPTS, seeds=SEEDS))
    pipe = load(folder)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, solver=solver)
    assert np.abs(pixels(pipe(PROMPTS, generator=generators()).images) - there).max() <= 1


def test_the_checkpoints_own_solver_is_exported(tmp_path: Path) -> None:
    settings = "sampling.scheduler_type=heun", "sampling.shift=2.0"
    checkpoint = made_up_checkpoint(tmp_path / "checkpoint", *settings)
    pipe = load(export(checkpoint, tmp_path / "out", "diffusers"))
    assert (pipe.scheduler.config.solver, pipe.scheduler.config.shift) == ("heun", 2.0)
    there = pixels(ImageGenerator(checkpoint, device="cpu").generate_batch(PROMPTS, seeds=SEEDS))
    assert np.abs(pixels(pipe(PROMPTS, generator=generators()).images) - there).max() <= 1


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
        ({"height": 9}, "height must be a multiple of 4; got 9"),
        ({"prompt": []}, "prompt is empty"),
        (
            {"negative_prompt": ["a", "b"]},
            "negative_prompt must be one prompt or one per prompt; got 2 for 1",
        ),
        ({"generator": generators()}, "generator must have one entry per image; got 4 for 1"),
        ({"output_type": "jpeg"}, "use pil, pt, np, or latent"),
        ({"latents": torch.zeros(1, 3, 8, 8)}, "expected latents of shape (1, 3, 16, 16)"),
        ({"guidance_type": "cfg_zero"}, "use cfg, cfg_zero_star, apg"),
        ({"guidance_scale": -1.0}, "guidance_scale must be at least 0; got -1.0"),
        ({"guidance_interval": (0.9, 0.1)}, "guidance_interval must be increasing"),
        ({"guidance_rescale": 2.0}, "guidance_rescale must be between 0 and 1"),
        ({"num_inference_steps": 0}, "num_inference_steps must be greater than 0"),
        ({"callback_on_step_end": lambda *a: {"latents": 1}}, "must not replace the latents"),
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
    exported: Exported, prediction: str, own: str, stock: str
) -> None:
    times = {"shift": 3.0, "timestep_power": 1.5, "zero_init_steps": 1}
    times = times if prediction in ("velocity", "sample") else {}
    pipe = load(exported(prediction)[1])
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, solver=own, **times)
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
    source = standalone(f"limner.apps.publishing.for_diffusers.{module}", name)
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
    from limner.apps.publishing import standalone as module

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
    with pytest.raises(ValueError, match=r"f contains an import from limner\.one"):
        standalone("limner.four", "f")
