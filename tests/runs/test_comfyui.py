"""integrations/comfyui: the nodes, as ComfyUI loads, checks, runs, keeps, and cancels them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui import ComfyUI, Interrupted
from made_up import made_up_checkpoint
from PIL import Image

from limner import ImageGenerator, LimnerError
from limner.apps.publishing.export import export

HERE = Path(__file__).parents[2] / "integrations" / "comfyui"
PROMPT = "a small red circle"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up_checkpoint(tmp_path_factory.mktemp("made") / "checkpoint")


@pytest.fixture
def comfy(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> ComfyUI:
    """One with the nodes, and a model in models/limner."""
    started = ComfyUI(tmp_path / "ComfyUI", monkeypatch)
    export(checkpoint, models(started) / "demo.safetensors")
    custom = tmp_path / "ComfyUI" / "custom_nodes"
    custom.mkdir()
    shutil.copy(HERE / "limner_nodes.py", custom)
    started.load(custom / "limner_nodes.py")
    return started


def models(comfy: ComfyUI) -> Path:
    return comfy.folder / "models" / "limner"


def text_to_image(**inputs: Any) -> dict[str, Any]:
    """The part of the example that draws from words; `model` and `path` are for the first node."""
    workflow = json.loads((HERE / "workflow_api.json").read_text("utf-8"))
    workflow = {id: workflow[id] for id in ("1", "2", "3")}
    if "path" in inputs:
        first = {"path": inputs.pop("path"), "precision": "float32"}
        workflow["1"] = {"class_type": "LimnerLoadModelFromPath", "inputs": first}
    for name, value in inputs.items():
        workflow["1" if name in ("model", "precision") else "2"]["inputs"][name] = value
    return workflow


def drawn(comfy: ComfyUI, **inputs: Any) -> torch.Tensor:
    return comfy.run(text_to_image(**{"prompt": PROMPT, "batch_size": 1, **inputs}))["limner/text"]


def levels(images: torch.Tensor) -> np.ndarray:
    return (images * 255).round().byte().numpy()


# What ComfyUI asks of a node


def test_the_classes_are_nodes(comfy: ComfyUI) -> None:
    ours = {name: node for name, node in comfy.nodes.items() if name.startswith("Limner")}
    assert ours.keys() == {
        *("LimnerLoadModel", "LimnerLoadModelFromPath", "LimnerTextToImage", "LimnerImageToImage")
    }
    for node in ours.values():
        assert node.CATEGORY == "Limner"
        assert callable(getattr(node, node.FUNCTION))
        assert isinstance(node.RETURN_TYPES, tuple)
        assert set(node.INPUT_TYPES()) == {"required"}
        for kind, *options in node.INPUT_TYPES()["required"].values():
            assert isinstance(kind, str | list)
            assert len(options) <= 1
            assert json.loads(json.dumps(options)) == options, "the page gets them as JSON"


def test_the_example_runs_as_it_is(comfy: ComfyUI) -> None:
    saved = comfy.run(json.loads((HERE / "workflow_api.json").read_text("utf-8")))
    assert {name: tuple(images.shape) for name, images in saved.items()} == {
        "limner/text": (4, 16, 16, 3),
        "limner/changed": (4, 16, 16, 3),
    }


def test_limner_that_is_missing_is_told(
    comfy: ComfyUI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "limner.errors", None)
    with pytest.raises(ImportError, match=r"not installed in ComfyUI's Python, .* -m pip install"):
        comfy.load(comfy.folder / "custom_nodes" / "limner_nodes.py")


# Drawing


def test_a_seed_gives_the_picture_of_limner_generate(comfy: ComfyUI, checkpoint: Path) -> None:
    images = drawn(comfy, seed=7, batch_size=3, steps=3, guidance_scale=2.0)
    assert images.dtype == torch.float32
    assert images.shape == (3, 16, 16, 3)
    assert images.min() >= 0
    assert images.max() <= 1
    generator = ImageGenerator(checkpoint, device="cpu")
    own = generator.generate_batch([PROMPT] * 3, 3, 2.0, [7, 8, 9])
    assert np.array_equal(levels(images), np.stack([np.asarray(image) for image in own]))


def test_what_is_left_alone_is_as_the_model_says(comfy: ComfyUI, checkpoint: Path) -> None:
    own = ImageGenerator(checkpoint, device="cpu").generate(PROMPT, seed=42)
    assert np.array_equal(levels(drawn(comfy))[0], np.asarray(own))


def test_size_and_negative_prompt_are_used(comfy: ComfyUI, checkpoint: Path) -> None:
    images = drawn(comfy, width=24, height=16, negative_prompt="two blue squares")
    own = ImageGenerator(checkpoint, device="cpu").generate(
        PROMPT, seed=42, width=24, height=16, negative_prompt="two blue squares"
    )
    assert images.shape == (1, 16, 24, 3)
    assert np.array_equal(levels(images)[0], np.asarray(own))


@pytest.mark.parametrize("channels", [3, 4])
def test_each_picture_is_changed_with_a_seed_of_its_own(
    comfy: ComfyUI, checkpoint: Path, channels: int
) -> None:
    sources = torch.rand(2, 20, 30, channels, generator=torch.Generator().manual_seed(0))
    sources[..., 3:] = 1
    node = comfy.nodes["LimnerImageToImage"]()
    asked = {name: o[0]["default"] for name, (_, *o) in node.INPUT_TYPES()["required"].items() if o}
    asked |= {"prompt": PROMPT, "seed": 5, "strength": 0.5, "steps": 4}
    with torch.inference_mode():
        model = comfy.nodes["LimnerLoadModel"]().load("demo.safetensors", "float32")[0]
        (images,) = node.draw(model=model, image=sources, **asked)
    generator = ImageGenerator(checkpoint, device="cpu")
    for number in range(2):
        source = Image.fromarray(levels(sources[number, ..., :3]))
        own = generator.generate(PROMPT, 4, seed=5 + number, init_image=source, strength=0.5)
        assert np.array_equal(levels(images[number]), np.asarray(own))


def test_a_model_can_be_used_outside_of_comfyui_s_inference_mode(comfy: ComfyUI) -> None:
    with torch.inference_mode():
        model = comfy.nodes["LimnerLoadModel"]().load("demo.safetensors", "float32")[0]
    assert not any(weight.is_inference() for weight in model.model.parameters())
    model.generate(PROMPT)


# Models


def test_runs_checkpoints_and_files_are_listed(comfy: ComfyUI, checkpoint: Path) -> None:
    here = models(comfy)
    shutil.copytree(checkpoint, here / "runs" / "cats" / "checkpoint-3")
    shutil.copytree(checkpoint, here / "final")
    export(checkpoint, here / "published")
    (here / "notes.txt").write_text("mine", "utf-8")
    (names, *_) = comfy.nodes["LimnerLoadModel"].INPUT_TYPES()["required"]["model"]
    assert names == ["demo.safetensors", "final", "published", "runs/cats"]
    first = drawn(comfy)
    for name in names[1:]:
        assert torch.equal(drawn(comfy, model=name), first)


def test_another_folder_of_models_is_searched_too(comfy: ComfyUI, checkpoint: Path) -> None:
    comfy.add_folder("limner", str(comfy.folder.parent / "more"))  # of extra_model_paths.yaml
    export(checkpoint, comfy.folder.parent / "more" / "b.safetensors")
    assert torch.equal(drawn(comfy, model="b.safetensors"), drawn(comfy))


def test_a_path_may_be_anywhere_and_quoted_as_windows_does(
    comfy: ComfyUI, checkpoint: Path
) -> None:
    assert torch.equal(drawn(comfy, path=f' "{checkpoint}" '), drawn(comfy))


def test_a_model_is_kept_until_it_changes(comfy: ComfyUI, checkpoint: Path) -> None:
    run = comfy.folder.parent / "run"
    shutil.copytree(checkpoint, run / "checkpoint-3")
    drawn(comfy, path=str(run))
    drawn(comfy, path=str(run), seed=1)
    loaded = "LimnerLoadModelFromPath"
    assert comfy.ran.count(loaded) == 1
    assert comfy.ran.count("LimnerTextToImage") == 2
    shutil.copytree(checkpoint, run / "checkpoint-5")
    drawn(comfy, path=str(run), seed=1)
    assert comfy.ran.count(loaded) == 2, "a newer checkpoint"
    file = models(comfy) / "demo.safetensors"
    drawn(comfy)
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    drawn(comfy)
    assert comfy.ran.count("LimnerLoadModel") == 2, "a file that was replaced"


# Progress, and Cancel


def test_progress_is_of_all_steps_of_all_pictures(comfy: ComfyUI) -> None:
    drawn(comfy, steps=3, batch_size=2)
    assert comfy.progress == [(2, 6), (4, 6), (6, 6)]


def test_cancel_ends_it_at_the_next_step(comfy: ComfyUI) -> None:
    comfy.interrupt_after = 2
    with pytest.raises(Interrupted):
        drawn(comfy, steps=9)
    assert len(comfy.progress) == 2
    comfy.interrupt_after, comfy.progress = None, []
    drawn(comfy, steps=9)
    assert len(comfy.progress) == 9, "and the model draws again"


# What goes wrong


def test_a_missing_model_is_told_before_it_runs(comfy: ComfyUI) -> None:
    (said,) = comfy.problems(text_to_image(model="gone.safetensors"))
    assert "there is no model 'gone.safetensors' in" in said
    assert str(models(comfy)) in said
    assert "limner export" in said


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"path": ""}, "path is empty"),
        ({"path": "/nowhere/at all"}, "no checkpoint at"),
        ({"width": 18}, "^width 18 is not a multiple of"),
        ({"width": 4096, "height": 4096}, "use fewer pixels"),
    ],
)
def test_errors_are_in_the_words_of_the_nodes(
    comfy: ComfyUI, inputs: dict[str, Any], message: str
) -> None:
    with pytest.raises((LimnerError, ValueError), match=message) as told:
        drawn(comfy, **inputs)
    assert "--" not in str(told.value)


def test_numbers_out_of_range_are_told_by_comfyui(comfy: ComfyUI) -> None:
    said = comfy.problems(text_to_image(seed=2**53, steps=-1, guidance_scale=-2, precision="int8"))
    assert len(said) == 4
    assert any("'int8' is not in the list" in one for one in said)


def test_a_distilled_model_keeps_its_guidance(comfy: ComfyUI, tmp_path: Path) -> None:
    words = ("model.flow_map=true", "sampling.scheduler_type=ddim", "sampling.guidance_scale=1.0")
    distilled = made_up_checkpoint(tmp_path / "distilled", *words)
    own = ImageGenerator(distilled, device="cpu").generate(PROMPT, 1, seed=42)
    assert np.array_equal(levels(drawn(comfy, path=str(distilled), steps=1))[0], np.asarray(own))
    with pytest.raises(LimnerError, match="was fixed when it was made; leave it at 1"):
        drawn(comfy, path=str(distilled), guidance_scale=3.0)
    with pytest.raises(LimnerError, match="cannot be guided away from another prompt"):
        drawn(comfy, path=str(distilled), negative_prompt="two blue squares")
