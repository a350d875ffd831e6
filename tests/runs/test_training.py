"""A run from its configuration to its folder: what it learns, and what it survives."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import Run, run_in
from runs import events, messages, trained

from limner import device as devices
from limner.checkpoint.folder import load_tensors
from limner.config import Config
from limner.errors import LimnerError
from limner.inference.generator import ImageGenerator
from limner.training.lr_schedule import ema_decay
from limner.training.trainer import Trainer

# Learning


@pytest.mark.parametrize("architecture", ["modern", "dit"])
def test_four_pictures_are_learned_by_heart(
    architecture: str, tiny_config: Callable[..., Config]
) -> None:
    config = tiny_config(
        f"model.architecture={architecture}",
        "data.num_samples=4",
        "data.main_caption_share=1",
        "scheduler.logit_mean=-0.6",  # the same times to the end: only so are losses comparable
        "training.batch_size=8",
        "training.max_steps=1000",
        "training.caption_dropout=0",
        "training.save_steps=1000",
        "training.logging_steps=20",
        "training.heldout_steps=1000",
        "sampling.num_inference_steps=8",
        "sampling.guidance_scale=1",
    )
    trainer = trained(config)
    losses = [event["loss"] for event in events(trainer.folder, "train")]
    assert losses[-1] < 0.02 * losses[0]

    images = trainer.data.trained
    prompts = [row.captions[0] for row in images.rows]
    truth = np.stack([images.load(i).numpy() for i in range(4)]).astype(float)
    drawn = ImageGenerator(trainer.folder, device="cpu").generate_batch(prompts, seeds=range(4))
    distances = abs(np.stack([np.asarray(p) for p in drawn])[:, None] - truth).mean((2, 3, 4))
    assert distances.argmin(axis=1).tolist() == [0, 1, 2, 3]
    assert distances.diagonal().max() < 5  # of 255 levels, on average over the picture


def test_gradients_are_clipped_and_their_true_norm_logged(
    tiny_config: Callable[..., Config],
) -> None:
    trainer = Trainer(tiny_config("optimizer.type=adamw", "training.max_grad_norm=0.5"))
    update, norms = trainer.run.optimizers["adamw"].step, []

    def step() -> None:
        gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
        update()

    trainer.run.optimizers["adamw"].step = step  # type: ignore[method-assign, assignment]
    trainer.train()
    assert norms == pytest.approx([0.5] * 6, rel=1e-4)
    assert min(event["grad_norm"] for event in events(trainer.folder, "train")) > 1


def test_the_average_is_that_of_the_weights_after_each_update(
    tiny_config: Callable[..., Config],
) -> None:
    config = tiny_config("training.ema_decay=0.9", "training.ema_ramp=0.8")
    trainer = Trainer(config)
    expected = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    update, count = trainer.run.update_ema, 0

    def update_average() -> None:
        nonlocal count
        count += 4
        decay = ema_decay(count, 4, 0.9, 0.8)
        assert 0.1 < decay <= 0.9
        for name, weights in trainer.model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * weights
        update()

    trainer.run.update_ema = update_average  # type: ignore[method-assign]
    trainer.train()
    for name, average in trainer.averaged.state_dict().items():
        torch.testing.assert_close(average, expected[name])


def test_looking_at_a_run_does_not_change_it(tiny_config: Callable[..., Config]) -> None:
    rarely = tiny_config("model.dropout=0.2", "training.heldout_steps=100")
    often = tiny_config(
        "model.dropout=0.2",
        "training.heldout_steps=1",
        "training.preview_steps=1",
        "training.logging_steps=5",
        f"training.output_dir='{rarely.training.output_dir}-2'",
    )
    a, b = trained(rarely).model.state_dict(), trained(often).model.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_two_processes_make_the_updates_of_one(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    # Without Muon, which makes a full step of a gradient that is rounding alone.
    settings = ["optimizer.type=adamw", "training.caption_dropout=0.3", "training.max_steps=3"]
    settings.append("model.dropout=0.2")  # whose masks are the pictures', not the batch's
    one = trained(tiny_config(*settings, "training.batch_size=8")).folder
    two = tmp_path / "two"
    config = tiny_config(*settings, "training.batch_size=4", f"training.output_dir='{two}'")
    run_in(2, Run(config))

    for kind, keys in (("train", ("images", "loss", "grad_norm")), ("heldout", ("loss",))):
        for a, b in zip(events(one, kind), events(two, kind), strict=True):
            assert [b[key] for key in keys] == pytest.approx([a[key] for key in keys], rel=1e-4)
    weights, other = (load_tensors(f / "checkpoint-3" / "model.pt") for f in (one, two))
    for name, tensor in weights.items():
        torch.testing.assert_close(other[name], tensor, atol=2e-5, rtol=1e-4)


# What goes wrong


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """Thirty pictures with captions; the first is not a picture, nor is one far from it, and one
    has no caption."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(30):
        path = folder / f"{i:02}.png"
        Image.new("RGB", (20, 20), (8 * i, 0, 255 - 8 * i)).save(path)
        path.with_suffix(".txt").write_text(f"colour {i}", encoding="utf-8")
    for i in (0, 17):
        (folder / f"{i:02}.png").write_bytes(b"not a picture")
    (folder / "05.txt").unlink()
    return folder


def listed(folder: Path) -> list[str]:
    lines = (folder / "refused.jsonl").read_text(encoding="utf-8").splitlines()
    refused = [json.loads(line) for line in lines]
    assert all(set(row) == {"key", "reason"} and row["reason"] for row in refused)
    return sorted(row["key"] for row in refused)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("heldout_pictures", [1, 64])  # 64: the measuring meets the bad ones first
def test_bad_pictures_are_listed_once_and_kill_nothing(
    heldout_pictures: int, num_workers: int, own_folder: Path, tiny_config: Callable[..., Config]
) -> None:
    settings = [
        "data.dataset_name=null",
        f"data.dataset_path='{own_folder}'",
        "data.num_samples=null",
        "training.max_steps=16",
        "training.save_steps=8",
        f"training.num_workers={num_workers}",
        f"training.heldout_pictures={heldout_pictures}",
        "data.check_pictures=false",  # they are met on the way
    ]
    config = tiny_config(*settings, "data.train_split=1")
    folder = trained(config).folder
    assert listed(folder) == ["00.png", "05.png", "17.png"]
    said = [message for message in messages(folder) if "00.png" in message or "17.png" in message]
    assert len(said) == 2
    (folder / "checkpoint-16").rename(folder / "gone")
    Trainer(config, resume="latest").train()
    whole, again = (load_tensors(folder / f / "model.pt") for f in ("gone", "checkpoint-16"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_held_out_pictures_may_all_be_bad(
    own_folder: Path, tiny_config: Callable[..., Config]
) -> None:
    settings = ["data.dataset_name=null", f"data.dataset_path='{own_folder}'"]
    trainer = Trainer(tiny_config(*settings, "data.num_samples=null", "data.train_split=0.8"))
    for row in trainer.data.held_out.rows:
        (own_folder / row.key).write_bytes(b"not a picture")
    trainer.train()
    assert {row.key for row in trainer.data.held_out.rows} <= set(listed(trainer.folder))
    assert "train_loss" in events(trainer.folder, "heldout")[0]
    assert "loss" not in events(trainer.folder, "heldout")[0]


def test_what_a_killed_compiler_left_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    inside = tmp_path / "po"
    inside.mkdir()
    for name, content in (
        ("cut.so", b""),
        ("new.so", b""),
        ("whole.so", b"x" * 4096),
        ("a.cpp", b""),
    ):
        (inside / name).write_bytes(content)
        if name != "new.so":
            os.utime(inside / name, (1, 1))
    assert devices.remove_cut_libraries() == [inside / "cut.so"]
    assert sorted(path.name for path in inside.iterdir()) == ["a.cpp", "new.so", "whole.so"]


def test_without_a_compiler_the_run_goes_on_and_says_so(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "why_not_compile", lambda device: "no C++ compiler was found")
    trainer = trained(tiny_config("training.compile_model=true"))
    assert trainer.state.step == 6
    assert "torch.compile is off, so training is slower: no C++ compiler was found" in messages(
        trainer.folder
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["training.device=cuda"], r"device cuda: torch .* finds none on this machine"),
        (["vae.pretrained_model_name=./vae"], r"(?s)vae\.pretrained_model_name: .* set it to null"),
        (["data.dataset_name=cats"], r"data\.dataset_name: 'cats' is neither emoji nor shapes"),
    ],
)
def test_what_cannot_be_trained_says_why(
    settings: Iterable[str], said: str, tiny_config: Callable[..., Config]
) -> None:
    if "training.device=cuda" in settings and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(LimnerError, match=said):
        Trainer(tiny_config(*settings))
