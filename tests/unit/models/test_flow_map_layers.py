"""What a denoiser has more of as a flow map: it is told the span, and may pass its input on."""

import pytest
import torch
from torch import Tensor, nn

from limner.models.dit import DiT
from limner.models.modern import ModernDiT
from limner.text.conditioning import TextConditioning


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[DiT, ModernDiT])
def pair(request: pytest.FixtureRequest) -> tuple[DiT | ModernDiT, DiT | ModernDiT]:
    """A denoiser with weights that matter, and the flow map that begins with them."""
    sizes = {"in_channels": 2, "patch_size": 2, "hidden_size": 32, "num_layers": 2}
    sizes |= {"num_heads": 2, "mlp_ratio": 2.0, "dropout": 0.0, "text_width": 8}
    torch.manual_seed(0)
    teacher, student = request.param(**sizes), request.param(**sizes, flow_map=True)
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
