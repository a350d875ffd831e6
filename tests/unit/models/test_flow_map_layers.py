"""What a denoiser has more of as a flow map: it is told the span, and may pass its input on."""

import pytest
import torch
from torch import Tensor, nn

from limner.models.dit import DiT
from limner.models.modern import ModernDiT
from limner.text.conditioning import TextConditioning


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


SIZES = {
    **{"in_channels": 2, "patch_size": 2, "hidden_size": 32, "num_layers": 2},
    **{"num_heads": 2, "mlp_ratio": 2.0, "dropout": 0.0, "text_width": 8},
}


@pytest.fixture(params=[DiT, ModernDiT])
def pair(request: pytest.FixtureRequest) -> tuple[DiT | ModernDiT, DiT | ModernDiT]:
    """A denoiser with weights that matter, and the flow map that begins with them."""
    torch.manual_seed(0)
    teacher, student = request.param(**SIZES), request.param(**SIZES, flow_map=True)
    for parameter in teacher.parameters():
        nn.init.normal_(parameter, std=0.2)
    left = student.load_state_dict(teacher.state_dict(), strict=False)
    assert {name.partition(".")[0] for name in left.missing_keys} <= {
        *("span_embedding", "span_embedder", "input_paths"),
    }
    return teacher.eval(), student.eval()


X, T = noise(3, 2, 8, 8), torch.tensor([1000.0, 500.0, 20.0])
TEXT = TextConditioning(noise(3, 4, 8), torch.ones(3, 4, dtype=torch.bool))


@torch.no_grad()
def test_at_first_it_predicts_what_its_teacher_does_for_any_span(
    pair: tuple[DiT | ModernDiT, DiT | ModernDiT],
) -> None:
    teacher, student = pair
    for span in (None, torch.zeros(3), T, 0.3 * T):
        assert torch.equal(student(X, T, TEXT, span), teacher(X, T, TEXT))


@torch.no_grad()
@pytest.mark.parametrize("architecture", [DiT, ModernDiT])
def test_a_guidance_scale_is_one_more_thing_that_it_is_told(
    architecture: type[DiT] | type[ModernDiT],
) -> None:
    """At first it changes nothing, and then what is asked for with the scale; without one it is 1,
    and a flow map of one scale has none of its weights."""
    torch.manual_seed(0)
    plain = architecture(**SIZES, flow_map=True).eval()
    torch.manual_seed(0)
    guided = architecture(**SIZES, flow_map=True, guidance_embeds=True).eval()
    own, more = plain.state_dict(), guided.state_dict()
    assert all(torch.equal(more[name], tensor) for name, tensor in own.items())
    left = {name.partition(".")[0] for name in more if name not in own}
    assert left <= {"guidance_embedding", "guidance_embedder"}
    assert (plain.takes_guidance, guided.takes_guidance) == (False, True)
    for name, parameter in guided.named_parameters():
        if not name.startswith(tuple(left)):
            nn.init.normal_(parameter, std=0.2)
    scales = torch.tensor([1.0, 2.5, 6.0])
    assert torch.equal(guided(X, T, TEXT, T, scales), guided(X, T, TEXT, T))
    embedder = getattr(guided, "guidance_embedding", None) or guided.guidance_embedder  # type: ignore[union-attr]
    for parameter in embedder.parameters():
        nn.init.normal_(parameter, std=0.2)
    found, without = guided(X, T, TEXT, T, scales), guided(X, T, TEXT, T)
    assert torch.equal(found[0], without[0])
    assert all((found[i] - without[i]).abs().max() > 0.01 for i in (1, 2))


@torch.no_grad()
def test_a_share_of_the_input_passes_by_the_blocks(
    pair: tuple[DiT | ModernDiT, DiT | ModernDiT],
) -> None:
    """To the last digit, also where the blocks compute in bfloat16."""
    teacher, student = pair
    assert student.input_paths is not None
    student.input_paths.share.bias.copy_(torch.tensor([1.0, -0.5]))
    shares = torch.tensor([1.0, -0.5])[:, None, None]
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
            one, other = student(X, T, TEXT, T), teacher(X, T, TEXT)
        assert torch.equal(one, other + shares * X)


@torch.no_grad()
def test_the_share_depends_on_the_time_and_the_span_and_not_on_the_words(
    pair: tuple[DiT | ModernDiT, DiT | ModernDiT],
) -> None:
    _, student = pair
    assert student.input_paths is not None
    embedder = getattr(student, "span_embedding", None) or student.span_embedder  # type: ignore[union-attr]
    for module in (embedder, student.input_paths):
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    shares = list[Tensor]()
    student.input_paths.share.register_forward_hook(lambda _, inputs, output: shares.append(output))
    other = TEXT._replace(tokens=-TEXT.tokens)
    for time, text, span in ((T, TEXT, T), (T, other, T), (T, TEXT, T / 2), (T / 2, TEXT, T)):
        student(X, time, text, span)
    torch.testing.assert_close(shares[0], shares[1])
    assert (shares[0] - shares[2]).abs().max() > 1e-3
    assert (shares[0] - shares[3]).abs().max() > 1e-3
