"""The networks: both architectures against their equations, and what must not change a picture."""

import cmath
import math
from collections.abc import Callable

import diffusers
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.config import Config
from limner.models.attention import attend
from limner.models.dit import DiT, gelu
from limner.models.layers import grid_positions, patchify, unpatchify
from limner.models.modern import ModernBlock, ModernDiT, rotate, rotation_table
from limner.models.text_encoder import TextEncoder
from limner.models.text_to_image import TextToImage, build_model
from limner.text.conditioning import TextConditioning

ARCHITECTURES = ["modern", "dit"]
VOCABULARY = 50
HEADS, PATCH, WIDTH, TEXT_WIDTH = 4, 2, 32, 24


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


def randomise(module: nn.Module, std: float = 0.2) -> None:
    """Moves every weight, so that nothing which starts at zero hides what lies behind it."""
    generator = seeded(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += std * torch.randn(parameter.shape, generator=generator)


def denoiser(architecture: type[DiT] | type[ModernDiT]) -> DiT | ModernDiT:
    torch.manual_seed(0)
    model = architecture(
        in_channels=3,
        patch_size=PATCH,
        hidden_size=WIDTH,
        num_layers=2,
        num_heads=HEADS,
        mlp_ratio=4.0,
        dropout=0.0,
        text_width=TEXT_WIDTH,
    )
    randomise(model)
    return model.eval()


def some_text(batch: int = 2) -> TextConditioning:
    """Three, four, ... of six tokens are words, the others padding."""
    mask = torch.arange(6) < torch.arange(3, 3 + batch)[:, None]
    return TextConditioning(randn(batch, 6, TEXT_WIDTH, seed=3), mask)


@pytest.fixture
def whole_model(tiny_config: Callable[..., Config]) -> Callable[..., TextToImage]:
    def build(architecture: str, *overrides: str) -> TextToImage:
        torch.manual_seed(0)
        config = tiny_config(f"model.architecture={architecture}", *overrides)
        return build_model(config, VOCABULARY).eval()

    return build


def some_input(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """x, t, and token ids with padding at the end."""
    ids = torch.randint(1, VOCABULARY, (batch, 24), generator=seeded(5))
    ids[:, 7:] = 0
    ids[1:, 4:] = 0
    return randn(batch, 3, 16, 16, seed=4), torch.tensor([0.0, 310.5, 1000.0][:batch]), ids


# The published architecture


def published_dit(w: dict[str, Tensor], x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """Peebles & Xie 2022, equation by equation, one head at a time, in the precision of `w`."""

    def linear(name: str, values: Tensor) -> Tensor:
        return values @ w[f"{name}.weight"].flatten(1).T + w[f"{name}.bias"]

    def silu(values: Tensor) -> Tensor:
        return values / (1 + (-values).exp())

    def gelu(values: Tensor) -> Tensor:
        inner = math.sqrt(2 / math.pi) * (values + 0.044715 * values**3)
        return values * (1 + inner.tanh()) / 2

    def norm(values: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        centred = values - values.mean(-1, keepdim=True)
        centred = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return centred * (1 + scale) + shift

    b, _, height, width = x.shape
    rows, columns = height // PATCH, width // PATCH
    h = linear("x_embedder.proj", F.unfold(x, PATCH, stride=PATCH).transpose(1, 2))
    speeds = [10_000 ** (-k / (WIDTH // 4)) for k in range(WIDTH // 4)]
    places = [
        [
            wave(place * s)
            for place in (column, row)
            for wave in (math.sin, math.cos)
            for s in speeds
        ]
        for row in range(rows)
        for column in range(columns)
    ]
    h = h + torch.tensor(places).to(h)
    angles = t[:, None] * torch.tensor([10_000 ** (-k / 128) for k in range(128)]).to(h)
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)
    c = linear("t_embedder.mlp.2", silu(linear("t_embedder.mlp.0", waves)))
    c = silu(c + linear("y_embedder", text))[:, None]

    for i in range(2):
        block = f"blocks.{i}"
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(
            f"{block}.adaLN_modulation.1", c
        ).split(WIDTH, dim=-1)
        q, k, v = linear(f"{block}.attn.qkv", norm(h, shift1, scale1)).split(WIDTH, dim=-1)
        attended = []
        for head in range(HEADS):
            part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
            scores = q[..., part] @ k[..., part].mT / math.sqrt(WIDTH // HEADS)
            weights = (scores - scores.amax(-1, keepdim=True)).exp()
            attended.append(weights / weights.sum(-1, keepdim=True) @ v[..., part])
        h = h + gate1 * linear(f"{block}.attn.proj", torch.cat(attended, dim=-1))
        fed = gelu(linear(f"{block}.mlp.fc1", norm(h, shift2, scale2)))
        h = h + gate2 * linear(f"{block}.mlp.fc2", fed)

    shift, scale = linear("final_layer.adaLN_modulation.1", c).split(WIDTH, dim=-1)
    out = linear("final_layer.linear", norm(h, shift, scale))
    out = out.reshape(b, rows, columns, PATCH, PATCH, 3)
    return torch.einsum("nhwpqc->nchpwq", out).reshape(b, 3, height, width)


def test_dit_is_what_the_paper_says() -> None:
    model, x, t, text = denoiser(DiT), randn(2, 3, 8, 12), torch.tensor([3.0, 871.5]), some_text()
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    pooled = torch.stack([text.tokens[i, : 3 + i].mean(0) for i in range(2)])
    expected = published_dit(weights, x.double(), t.double(), pooled.double())
    assert expected.std() > 0.3  # nothing is zero that could hide an error
    # In float32 the angles of the times, up to 871.5, are exact to 3e-5.
    torch.testing.assert_close(model(x, t, text).double(), expected, atol=1e-3, rtol=1e-4)


def test_dit_gives_the_numbers_of_diffusers() -> None:
    model, x, t, text = denoiser(DiT), randn(2, 3, 8, 8), torch.tensor([3.0, 871.0]), some_text()
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=3,
        out_channels=3,
        num_layers=2,
        sample_size=8,
        patch_size=PATCH,
        num_embeds_ada_norm=2,
        norm_eps=1e-6,
    ).eval()
    ours = model.state_dict()
    renamed: dict[str, Tensor] = {}

    def take(their_name: str, our_name: str) -> None:
        for kind in ("weight", "bias"):
            renamed[f"{their_name}.{kind}"] = ours[f"{our_name}.{kind}"]

    take("pos_embed.proj", "x_embedder.proj")
    take("proj_out_1", "final_layer.adaLN_modulation.1")
    take("proj_out_2", "final_layer.linear")
    for i, block in enumerate(theirs.transformer_blocks):
        their_block, our_block = f"transformer_blocks.{i}", f"blocks.{i}"
        # Theirs embed time and class in every block, and shift the frequencies of time by one.
        block.norm1.emb.time_proj.downscale_freq_shift = 0
        take(f"{their_block}.norm1.emb.timestep_embedder.linear_1", "t_embedder.mlp.0")
        take(f"{their_block}.norm1.emb.timestep_embedder.linear_2", "t_embedder.mlp.2")
        classes = torch.cat([model.y_embedder(text.pooled()), torch.zeros(1, WIDTH)])
        renamed[f"{their_block}.norm1.emb.class_embedder.embedding_table.weight"] = classes
        take(f"{their_block}.norm1.linear", f"{our_block}.adaLN_modulation.1")
        for part, name in enumerate(("to_q", "to_k", "to_v")):
            for kind in ("weight", "bias"):
                stacked = ours[f"{our_block}.attn.qkv.{kind}"].chunk(3)
                renamed[f"{their_block}.attn1.{name}.{kind}"] = stacked[part]
        take(f"{their_block}.attn1.to_out.0", f"{our_block}.attn.proj")
        take(f"{their_block}.ff.net.0.proj", f"{our_block}.mlp.fc1")
        take(f"{their_block}.ff.net.2", f"{our_block}.mlp.fc2")
    theirs.load_state_dict(renamed)
    with torch.no_grad():
        expected = theirs(x, t.long(), class_labels=torch.arange(2)).sample
        torch.testing.assert_close(model(x, t, text), expected, atol=1e-4, rtol=1e-4)


# The modern architecture


def turned(x: Tensor, angles: list[list[float]]) -> Tensor:
    """x [N, D]: feature i is the real and i + D/2 the imaginary part of a number to be turned."""
    half = x.shape[1] // 2
    numbers = [
        [complex(row[i], row[i + half]) * cmath.exp(1j * angle[i]) for i in range(half)]
        for row, angle in zip(x.tolist(), angles, strict=True)
    ]
    parts = [[z.real for z in row] + [z.imag for z in row] for row in numbers]
    return torch.tensor(parts, dtype=x.dtype)


def axial_angles(rows: int, columns: int, head_width: int) -> list[list[float]]:
    """A quarter of the features turns with the row, a quarter with the column, of a picture whose
    longer side is 16 units."""
    unit = 16 / max(rows, columns)
    speeds = [100 ** (-4 * k / head_width) for k in range(head_width // 4)]
    return [
        [place * unit * speed for place in (row + 0.5, column + 0.5) for speed in speeds]
        for row in range(rows)
        for column in range(columns)
    ]


def test_rotation_is_a_product_of_complex_numbers() -> None:
    x = randn(1, 1, 15, 8)
    expected = turned(x[0, 0].double(), axial_angles(3, 5, 8))
    result = rotate(x, rotation_table(3, 5, 8))[0, 0]
    torch.testing.assert_close(result.double(), expected, atol=1e-5, rtol=0)


def test_rotated_queries_and_keys_see_distances_only() -> None:
    q, k = (vector.expand(1, 1, 36, 16) for vector in randn(2, 16))
    table = rotation_table(6, 6, 16)
    scores = (rotate(q, table) @ rotate(k, table).mT).reshape(6, 6, 6, 6)
    torch.testing.assert_close(scores[:5, :4, :5, :4], scores[1:, 2:, 1:, 2:])
    assert scores.std() > 0.1


def modern_block(
    w: dict[str, Tensor], x: Tensor, modulation: Tensor, text: Tensor, angles: list[list[float]]
) -> Tensor:
    """One picture x [N, D] and its words text [L, Dt], no padding: the equations, head by head."""

    def norm(values: Tensor, weight: Tensor | float = 1.0) -> Tensor:
        return values / (values.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    shift1, scale1, gate1, shift2, scale2, gate2 = modulation + w["modulation"]
    h = norm(x) * (1 + scale1) + shift1
    q, k, v = (h @ part.T for part in w["qkv.weight"].chunk(3))
    text_k, text_v = (text @ part.T for part in w["text_kv.weight"].chunk(2))
    attended = []
    for head in range(HEADS):
        part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
        queries = turned(norm(q[:, part], w["norm_q.weight"]), angles)
        keys = turned(norm(k[:, part], w["norm_k.weight"]), angles)
        keys = torch.cat([norm(text_k[:, part], w["norm_k.weight"]), keys])
        scores = queries @ keys.T / math.sqrt(WIDTH // HEADS)
        attended.append(scores.softmax(dim=-1) @ torch.cat([text_v[:, part], v[:, part]]))
    x = x + gate1 * (torch.cat(attended, dim=-1) @ w["out.weight"].T)
    gate, value = (
        (norm(x) * (1 + scale2) + shift2) @ part.T
        for part in w["mlp.gate_and_value.weight"].chunk(2)
    )
    return x + gate2 * ((gate / (1 + (-gate).exp()) * value) @ w["mlp.out.weight"].T)


def test_modern_block_is_its_equations() -> None:
    block = ModernBlock(WIDTH, HEADS, TEXT_WIDTH, mlp_ratio=4.0, dropout=0.0).eval()
    randomise(block)
    x, modulation, text = randn(2, 6, WIDTH), randn(2, 6, WIDTH, seed=1) / 2, some_text()
    mask = F.pad(text.mask, (0, 6), value=True)[:, None, None]
    result = block(x, modulation, text.tokens, mask, rotation_table(2, 3, WIDTH // HEADS))
    weights = {name: tensor.double() for name, tensor in block.state_dict().items()}
    for i in range(2):
        words = text.tokens[i, : 3 + i].double()
        angles = axial_angles(2, 3, WIDTH // HEADS)
        expected = modern_block(weights, x[i].double(), modulation[i].double(), words, angles)
        torch.testing.assert_close(result[i].double(), expected, atol=1e-4, rtol=1e-4)


# Pieces of both


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attend_is_the_attention_of_torch(dtype: torch.dtype) -> None:
    q, k, v = randn(2, 3, 5, 8), randn(2, 3, 9, 8, seed=1), randn(2, 3, 9, 8, seed=2)
    mask = torch.rand(2, 1, 5, 9, generator=seeded(3)) < 0.6
    mask[..., 0] = True
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    for allowed in (None, mask, mask[:, :, :1]):
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        result = attend(q.to(dtype), k.to(dtype), v.to(dtype), allowed)
        assert result.dtype == dtype
        torch.testing.assert_close(result.float(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_the_same_with_and_without_a_backward_pass(dtype: torch.dtype) -> None:
    q, k, v = (randn(2, 3, n, 8, seed=n).to(dtype) for n in (5, 9, 9))
    mask = torch.rand(2, 1, 1, 9, generator=seeded(3)) < 0.6
    mask[..., 0] = True
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    for allowed in (None, mask):
        learning = attend(q, k, v, allowed)
        with torch.no_grad():
            torch.testing.assert_close(
                attend(q, k, v, allowed), learning, atol=tolerance, rtol=tolerance
            )
    # What is added to the scores: minus infinity is a mask, log 2 a key that is there twice.
    added = torch.zeros(2, 1, 1, 9).masked_fill(~mask, -math.inf)
    torch.testing.assert_close(
        attend(q, k, v, added), attend(q, k, v, mask), atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("masked", [False, True])
def test_attend_has_the_gradients_of_torch(masked: bool) -> None:
    given = [randn(2, 3, n, 8, seed=n) for n in (5, 9, 9)]
    mask = torch.rand(2, 1, 1, 9, generator=seeded(3)) < 0.6 if masked else None
    if mask is not None:
        mask[..., 0] = True
    wanted = []
    for attention in (F.scaled_dot_product_attention, attend):
        parts = [part.clone().requires_grad_() for part in given]
        (attention(*parts, mask) * randn(2, 3, 5, 8, seed=7)).sum().backward()
        wanted.append([part.grad for part in parts])
    torch.testing.assert_close(wanted[1], wanted[0], atol=1e-5, rtol=1e-5)


def test_gelu_is_the_published_one_compiled_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linspace(-8, 8, 1001)
    expected = F.gelu(x.double(), approximate="tanh").float()
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda answer=compiling: answer)
        torch.testing.assert_close(gelu(x), expected, atol=1e-6, rtol=1e-5)
        assert gelu(x.bfloat16()).dtype == torch.bfloat16


def test_patches_are_those_of_a_convolution_and_can_be_put_back() -> None:
    x = randn(2, 3, 8, 12)
    patches = patchify(x, 4)
    torch.testing.assert_close(patches, F.unfold(x, 4, stride=4).transpose(1, 2))
    channels_innermost = patches.unflatten(-1, (3, 16)).mT.flatten(2)
    torch.testing.assert_close(unpatchify(channels_innermost, 4, 8, 12), x)


def test_a_finer_grid_covers_the_same_picture() -> None:
    for coarse, fine in zip(grid_positions(2, 3), grid_positions(4, 6), strict=True):
        middle = fine.reshape(2, 2, 3, 2).mean(dim=(1, 3))
        torch.testing.assert_close(middle.flatten(), coarse)


# Any architecture


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_a_new_model_answers_zero_in_the_shape_of_x(
    architecture: str, size: tuple[int, int], whole_model: Callable[..., TextToImage]
) -> None:
    _, t, ids = some_input()
    x = randn(3, 3, *size)
    output = whole_model(architecture)(x, t, ids)
    assert torch.equal(output, torch.zeros_like(x))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_reach_every_parameter(
    architecture: str, whole_model: Callable[..., TextToImage]
) -> None:
    model = whole_model(architecture)
    randomise(model, std=0.05)
    x, t, ids = some_input()
    ids[0] = torch.randint(1, VOCABULARY, (24,), generator=seeded(9))  # uses every position
    (model(x, t, ids) * randn(*x.shape, seed=8)).sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ids_and_encoded_text_give_the_same_picture(
    architecture: str, whole_model: Callable[..., TextToImage]
) -> None:
    model = whole_model(architecture)
    randomise(model)
    x, t, ids = some_input()
    output = model(x, t, ids)
    assert torch.equal(model(x, t, model.text_encoder(ids)), output)
    assert not torch.allclose(model(x, t, ids.flip(0)), output, atol=0.01)  # words matter at all
    assert not torch.allclose(model(x, t.flip(0), ids), output, atol=0.01)  # and so does the time


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("architecture", [DiT, ModernDiT])
def test_text_that_was_prepared_draws_the_same_to_the_bit(
    architecture: type[DiT] | type[ModernDiT], vector: bool, dtype: torch.dtype
) -> None:
    model, x, t, text = (
        denoiser(architecture),
        randn(2, 3, 8, 8),
        torch.tensor([5.0, 900]),
        some_text(),
    )
    if vector:
        text = text._replace(vector=randn(2, TEXT_WIDTH, seed=8))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        prepared = model.prepare(text)
        reads: list[nn.Module] = []
        for module in model.modules():
            if getattr(module, "in_features", None) == TEXT_WIDTH and architecture is ModernDiT:
                module.register_forward_hook(lambda module, *_: reads.append(module))
        assert torch.equal(model(x, t, prepared), model(x, t, text))
        assert len(reads) == (3 if architecture is ModernDiT else 0)  # for the text as it is
        pair = prepared.rows(slice(0, 1)).followed_by(prepared.rows(slice(1, 2)))
        assert torch.equal(model(x, t, pair), model(x, t, text))
        # One empty text for a whole batch, as guidance has it.
        both = prepared.followed_by(prepared.rows(slice(0, 1)))
        same = text.followed_by(text.rows(slice(0, 1)))
        x, t = torch.cat([x, x]), torch.cat([t, t])
        tolerance = 1e-5 if dtype == torch.float32 else 0.02
        torch.testing.assert_close(
            model(x, t, both), model(x, t, same), atol=tolerance, rtol=tolerance
        )


@pytest.mark.parametrize("architecture", [DiT, ModernDiT])
def test_words_that_count_less_are_seen_less(architecture: type[DiT] | type[ModernDiT]) -> None:
    model, x, t, text = (
        denoiser(architecture),
        randn(2, 3, 8, 8),
        torch.tensor([5.0, 900]),
        some_text(),
    )
    # A word that counts nothing is one behind the mask; one that counts twice is there twice.
    weight = torch.ones(2, 6)
    weight[:, 2] = 0
    nothing = text._replace(log_weight=weight.log())
    masked = TextConditioning(text.tokens, text.mask & (weight > 0))
    with torch.no_grad():
        torch.testing.assert_close(model(x, t, nothing), model(x, t, masked), atol=1e-5, rtol=1e-5)
        twice = TextConditioning(
            torch.cat([text.tokens, text.tokens[:, :1]], dim=1),
            torch.cat([text.mask, text.mask[:, :1]], dim=1),
        )
        weight = torch.ones(2, 6)
        weight[:, 0] = 2
        heavy = text._replace(log_weight=weight.log())
        torch.testing.assert_close(model(x, t, heavy), model(x, t, twice), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", [DiT, ModernDiT])
def test_what_stands_behind_the_mask_is_not_read(
    architecture: type[DiT] | type[ModernDiT],
) -> None:
    model, x, t, text = (
        denoiser(architecture),
        randn(2, 3, 8, 8),
        torch.tensor([5.0, 900]),
        some_text(),
    )
    output = model(x, t, text)
    other = text.tokens.masked_fill(~text.mask[..., None], 7.0)
    assert torch.equal(model(x, t, TextConditioning(other, text.mask)), output)
    one_word_less = TextConditioning(text.tokens, text.mask & (torch.arange(6) < 3))
    assert not torch.allclose(model(x, t, one_word_less)[1], output[1], atol=0.01)


def test_a_prompt_is_encoded_alone_whatever_stands_beside_or_behind_it() -> None:
    encoder = TextEncoder(VOCABULARY, max_length=24, width=64, num_layers=2).eval()
    randomise(encoder)
    _, _, ids = some_input()
    together = encoder(ids)
    assert together.mask.sum(dim=1).tolist() == [7, 4, 4]
    for i, length in enumerate((7, 4, 4)):
        alone = encoder(ids[i : i + 1, :length])
        torch.testing.assert_close(alone.tokens[0], together.tokens[i, :length])
        torch.testing.assert_close(alone.pooled()[0], together.pooled()[i])


def test_the_order_of_the_words_matters() -> None:
    encoder = TextEncoder(VOCABULARY, max_length=24, width=64, num_layers=1).eval()
    randomise(encoder)
    ids = torch.tensor([[1, 8, 9, 10, 0], [1, 10, 9, 8, 0]])
    first, second = encoder(ids).pooled()
    assert not torch.allclose(first, second, atol=0.01)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropout_acts_in_training_only(
    architecture: str, whole_model: Callable[..., TextToImage]
) -> None:
    model = whole_model(architecture, "model.dropout=0.5")
    randomise(model)
    x, t, ids = some_input()
    assert torch.equal(model(x, t, ids), model(x, t, ids))
    model.train()
    assert not torch.allclose(model(x, t, ids), model(x, t, ids), atol=0.01)
