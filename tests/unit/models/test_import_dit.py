"""Published DiT weights in our network and samplers, against the formulas written out here."""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import generate_classes
import numpy as np
import pytest
import torch
from class_dit_sampling import respaced_timesteps, sample_ddim, sample_ddpm
from class_dit_weights import read_published_dit
from class_generator import ClassImageGenerator, Guided
from PIL import Image
from pretrained import tiny_autoencoder
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from limner.errors import LimnerError

WIDTH, DEPTH, HEADS, PATCH, CHANNELS, CLASSES, SIDE = 24, 2, 3, 2, 4, 5, 8
Weights = dict[str, Tensor]


def published_weights() -> Weights:
    """Random weights in the published layout; every one counts."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj.weight": (WIDTH, CHANNELS, PATCH, PATCH),
        "t_embedder.mlp.0.weight": (WIDTH, 256),
        "t_embedder.mlp.2.weight": (WIDTH, WIDTH),
        "final_layer.linear.weight": (PATCH**2 * 2 * CHANNELS, WIDTH),
        "final_layer.adaLN_modulation.1.weight": (2 * WIDTH, WIDTH),
    }
    for i in range(DEPTH):
        shapes |= {
            f"blocks.{i}.attn.qkv.weight": (3 * WIDTH, WIDTH),
            f"blocks.{i}.attn.proj.weight": (WIDTH, WIDTH),
            f"blocks.{i}.mlp.fc1.weight": (4 * WIDTH, WIDTH),
            f"blocks.{i}.mlp.fc2.weight": (WIDTH, 4 * WIDTH),
            f"blocks.{i}.adaLN_modulation.1.weight": (6 * WIDTH, WIDTH),
        }
    weights = {name: torch.randn(shape) * 0.2 for name, shape in shapes.items()}
    for name in list(weights):
        weights[name.replace("weight", "bias")] = torch.randn(shapes[name][0]) * 0.2
    weights["y_embedder.embedding_table.weight"] = torch.randn(CLASSES + 1, WIDTH) * 0.5
    weights["pos_embed"] = torch.from_numpy(positions(SIDE // PATCH)).float()[None]
    return weights


# The published network and samplers, as the papers have them


def positions(side: int) -> np.ndarray:
    """[side^2, WIDTH]: waves of the column in the first half, of the row in the second."""
    table = np.zeros((side * side, WIDTH))
    quarter = WIDTH // 4
    for place in range(side * side):
        row, column = divmod(place, side)
        for k in range(quarter):
            speed = 10_000 ** (-k / quarter)
            for half, axis in ((0, column), (1, row)):
                table[place, 2 * half * quarter + k] = math.sin(axis * speed)
                table[place, (2 * half + 1) * quarter + k] = math.cos(axis * speed)
    return table


def network(w: Weights, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    def linear(name: str, value: Tensor) -> Tensor:
        return value @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def normalised(value: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        centred = value - value.mean(-1, keepdim=True)
        value = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return value * (1 + scale[:, None]) + shift[:, None]

    count, side = len(x), x.shape[-1] // PATCH
    patches = x.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # [B, C, rows, columns, p, p]
    tokens = torch.einsum("bcijpq,dcpq->bijd", patches, w["x_embedder.proj.weight"])
    tokens = tokens.reshape(count, side**2, WIDTH) + w["x_embedder.proj.bias"] + w["pos_embed"]
    # In float32, as published: at t = 999 the fourth digit of a sine depends on it.
    angles = t[:, None] * torch.exp(
        -math.log(10_000) * torch.arange(128, dtype=torch.float32) / 128
    )
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)
    condition = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", waves)))
    condition = F.silu(condition + w["y_embedder.embedding_table.weight"][y])
    for i in range(DEPTH):
        parts = linear(f"blocks.{i}.adaLN_modulation.1", condition).split(WIDTH, dim=1)
        inner = linear(f"blocks.{i}.attn.qkv", normalised(tokens, parts[0], parts[1]))
        attended = []
        for head in range(HEADS):
            d = WIDTH // HEADS
            q, k, v = (inner[..., j * WIDTH + head * d :][..., :d] for j in range(3))
            attended.append((q @ k.mT / math.sqrt(d)).softmax(-1) @ v)
        merged = linear(f"blocks.{i}.attn.proj", torch.cat(attended, dim=-1))
        tokens = tokens + parts[2][:, None] * merged
        hidden = linear(f"blocks.{i}.mlp.fc1", normalised(tokens, parts[3], parts[4]))
        hidden = (
            hidden / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        )
        tokens = tokens + parts[5][:, None] * linear(f"blocks.{i}.mlp.fc2", hidden)
    shift, scale = linear("final_layer.adaLN_modulation.1", condition).split(WIDTH, dim=1)
    out = linear("final_layer.linear", normalised(tokens, shift, scale))
    image = torch.zeros(count, 2 * CHANNELS, side * PATCH, side * PATCH)
    for place in range(side**2):
        row, column = divmod(place, side)
        square = out[:, place].reshape(count, PATCH, PATCH, 2 * CHANNELS).permute(0, 3, 1, 2)
        rows, columns = slice(row * PATCH, (row + 1) * PATCH), column * PATCH
        image[:, :, rows, columns : columns + PATCH] = square
    return image


def guided(w: Weights, x: Tensor, t: int, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The noise, guided in three channels of four, and the variance's place."""
    times = torch.full((len(x),), float(t))
    told = network(w, x, times, y)
    untold = network(w, x, times, torch.full_like(y, CLASSES))
    noise = told[:, :CHANNELS].clone()
    noise[:, :3] = untold[:, :3] + scale * (told[:, :3] - untold[:, :3])
    return noise, told[:, CHANNELS:]


def kept_times(steps: int) -> list[int]:
    """Ascending, evenly from 0 to 999."""
    return [round(i * (999 / (steps - 1))) for i in range(steps)]


def draw(
    w: Weights, z: Tensor, y: Tensor, steps: int, scale: float, noises: list[Tensor] | None
) -> Tensor:
    """Without noises: DDIM. Improved DDPM's posterior on the kept times, in numbers of float64."""
    times = kept_times(steps)
    product = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[times]
    before = np.concatenate([[1.0], product[:-1]])
    beta = 1 - product / before
    lowest = beta * (1 - before) / (1 - product)
    lowest[0] = lowest[1]
    x = z
    for place in reversed(range(steps)):
        a, b = product[place], before[place]
        noise, v = guided(w, x, times[place], y, scale)
        image = (x - math.sqrt(1 - a) * noise) / math.sqrt(a)
        if noises is None:
            x = math.sqrt(b) * image + math.sqrt(1 - b) * noise
            continue
        mean = math.sqrt(b) * beta[place] / (1 - a) * image
        mean = mean + math.sqrt(1 - beta[place]) * (1 - b) / (1 - a) * x
        log_variance = (v + 1) / 2 * math.log(beta[place])
        log_variance = log_variance + (1 - v) / 2 * math.log(lowest[place])
        x = mean + (log_variance.exp().sqrt() * noises[steps - 1 - place] if place else 0)
    return x


# Parity


@pytest.fixture(scope="module")
def weights() -> Weights:
    return published_weights()


@pytest.fixture(scope="module")
def file(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the published training code saves it; what is not the average is nonsense."""
    path = tmp_path_factory.mktemp("published") / "0400000.pt"
    wrong = {name: tensor * 0 for name, tensor in weights.items()}
    flags = argparse.Namespace(model="DiT-XL/2")
    torch.save({"model": wrong, "ema": weights, "opt": {}, "args": flags}, path)
    return path


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert (found - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


def inputs(count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(count, CHANNELS, SIDE, SIDE)
    return x, torch.tensor([0.0, 321.0, 999.0][:count]), torch.tensor([0, 3, CLASSES][:count])


def test_the_network_predicts_what_the_published_one_does(weights: Weights, file: Path) -> None:
    found = read_published_dit(file, num_heads=HEADS)
    assert (found.sample_size, found.model.num_classes) == (SIDE, CLASSES)
    x, t, y = inputs()
    expected = network(weights, x, t, y)
    assert expected.std() > 0.3
    close(found.model(x, t, y), expected)


@pytest.mark.parametrize("steps", [2, 6, 27])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_sampling_follows_the_published_code(
    weights: Weights, file: Path, steps: int, scale: float
) -> None:
    model = read_published_dit(file, num_heads=HEADS).model
    z, _, y = inputs()
    noises = [torch.randn_like(z) for _ in range(steps)]
    predict = Guided(model, y, scale, 3)
    close(
        sample_ddpm(predict, z, steps, noises.__getitem__),
        draw(weights, z, y, steps, scale, noises),
    )
    close(sample_ddim(predict, z, steps), draw(weights, z, y, steps, scale, None))


def test_three_channels_are_guided_unless_asked(file: Path) -> None:
    model = read_published_dit(file, num_heads=HEADS).model
    x, t, y = inputs()
    plain, three, all_of_them = (model.guided(x, t, y, s, c) for s, c in ((1, 3), (4, 3), (4, 4)))
    close(three[:, 3:], plain[:, 3:])
    close(three[:, :3], all_of_them[:, :3])
    assert (all_of_them[:, 3] - plain[:, 3]).abs().max() > 0.1


@pytest.mark.parametrize("steps", [2, 10, 50, 250, 1000])
def test_the_kept_timesteps_are_the_published_ones(steps: int) -> None:
    assert respaced_timesteps(steps).tolist() == [*reversed(kept_times(steps)), -1]


# Layouts


def diffusers_transformer() -> Any:
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        out_channels=2 * CHANNELS,
        num_layers=DEPTH,
        sample_size=SIDE,
        num_embeds_ada_norm=CLASSES,
    )
    own = model.transformer_blocks[0].norm1.emb
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(own.state_dict())  # as the converted published weights are
    return model.eval()


def as_published(model: Any) -> Any:
    """Diffusers' network with the two numbers that it has otherwise: its timestep frequencies end
    one earlier, and the second norm of a block has an epsilon ten times as large."""
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
        block.norm3.eps = 1e-6
    return model


@pytest.mark.parametrize("whole", [True, False])
def test_diffusers_layout_is_read_with_its_vae(tmp_path: Path, whole: bool) -> None:
    model = diffusers_transformer()
    folder = tmp_path / "pipeline"
    model.save_pretrained(folder / "transformer" if whole else folder)
    if whole:
        (folder / "model_index.json").write_text("{}", "utf-8")
        tiny_autoencoder(folder / "vae")
    found = read_published_dit(folder)
    assert found.folder == (folder if whole else None)
    assert found.sample_size == SIDE
    x, t, y = inputs()
    with torch.no_grad():
        expected = as_published(model)(x, t, y, return_dict=False)[0]
    close(found.model(x, t, y), expected)


def test_a_bare_state_dict_and_safetensors_are_read_too(weights: Weights, tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "DiT-XL-2-256x256.pt")
    save_file(weights, tmp_path / "dit.safetensors")
    x, t, y = inputs()
    expected = network(weights, x, t, y)
    for name in ("DiT-XL-2-256x256.pt", "dit.safetensors"):
        close(read_published_dit(tmp_path / name, HEADS).model(x, t, y), expected)


class Trap:
    def __reduce__(self) -> Any:
        return print, ("executed",)


def test_nothing_in_a_file_is_executed(weights: Weights, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "trap.pt"
    torch.save({"ema": weights, "args": Trap()}, path)
    with pytest.raises(LimnerError, match="was rejected"):
        read_published_dit(path, HEADS)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("y_embedder.embedding_table.weight"), "embedding_table.weight is missing"),
        (lambda w: w.pop("pos_embed"), "pos_embed is missing"),
        (lambda w: w.update(pos_embed=w["pos_embed"] + 0.1), "not the fixed sines and cosines"),
        (lambda w: w.pop("blocks.1.attn.qkv.bias"), "blocks.1.attn.qkv.bias: not in the file"),
        (lambda w: w.update({"head.weight": torch.ones(1)}), "head.weight: not in the model"),
    ],
)
def test_other_weights_are_refused_by_name(
    weights: Weights, tmp_path: Path, change: Callable[[Weights], Any], said: str
) -> None:
    changed = dict(weights)
    change(changed)
    torch.save(changed, tmp_path / "dit.pt")
    with pytest.raises(LimnerError, match=said):
        read_published_dit(tmp_path / "dit.pt", HEADS)


def test_heads_that_nobody_can_know_must_be_said(file: Path) -> None:
    with pytest.raises(LimnerError, match="say --num_heads"):
        read_published_dit(file)


# The command


def test_the_command_draws_a_picture_per_label(file: Path, tmp_path: Path) -> None:
    vae = tiny_autoencoder(tmp_path / "vae")
    output = tmp_path / "class.png"
    words = [str(file), "1", "4", "--vae", str(vae), "--num_heads", "3", "--device", "cpu"]
    words += ["--num_inference_steps", "4", "--seed", "7", "--output", str(output)]
    generate_classes.main(words)
    drawn = [np.array(Image.open(tmp_path / f"class-{n}.png")) for n in (0, 1)]
    generator = ClassImageGenerator(file, vae, "cpu", HEADS)
    alone = generator.generate([4], 8, 4)[0]
    assert drawn[0].shape == (32, 32, 3)
    assert np.abs(drawn[1].astype(int) - np.array(alone)).max() <= 1
    assert np.abs(drawn[1].astype(int) - drawn[0]).max() > 8
    ddim = generator.generate([4], 8, 4, scheduler_type="ddim")[0]
    assert np.abs(drawn[1].astype(int) - np.array(ddim)).max() > 2


def test_the_command_says_what_is_wrong(file: Path, tmp_path: Path) -> None:
    vae = tiny_autoencoder(tmp_path / "vae")
    wide = tiny_autoencoder(tmp_path / "wide", 8)
    rest = ["--num_heads", "3", "--device", "cpu"]
    for words, said in (
        ([str(file), "6", "--vae", str(vae), *rest], "class 6 is not known: the weights have 0 to"),
        ([str(file), "1", "--vae", str(wide), *rest], "works in latents of 4 channels"),
        ([str(tmp_path / "no.pt"), "1", *rest], "there is no such file"),
        (
            [str(file), "1", "--vae", str(vae), "--guidance_channels", "5", *rest],
            "guidance_channels is 5; take 1 to 4",
        ),
    ):
        with pytest.raises(LimnerError, match=re.escape(said)):
            generate_classes.main([*words, "--output", str(tmp_path / "x.png")])
