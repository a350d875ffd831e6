"""An update's gradient is that of the mean over its pictures, however they are cut into parts."""

from collections.abc import Callable

import pytest
import torch

from limner.config import Config
from limner.training.trainer import Trainer


@pytest.mark.parametrize("count", [2, 3, 8])  # of 3: parts of 3, 3, and 2 pictures
def test_the_gradient_does_not_depend_on_the_parts(
    count: int, tiny_config: Callable[..., Config]
) -> None:
    settings = "training.batch_size=8", "training.gradient_accumulation_steps=2"
    trainer = Trainer(tiny_config(*settings, "model.dropout=0.2"))
    step, model = trainer.run.train_step, trainer.model
    with trainer.batches:
        batches = trainer.batches.of_next_update()

    def gradients() -> tuple[float, list[torch.Tensor]]:
        step.forget_gradients()
        loss = float(step.gradients(batches, 0.0))
        return loss, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    loss, whole = gradients()
    trainer.state.split_micro_batches(count)
    loss_in_parts, in_parts = gradients()
    assert loss_in_parts == pytest.approx(loss, rel=1e-5)
    assert len(in_parts) == len(whole) > 0
    assert max(float(gradient.abs().max()) for gradient in whole) > 1e-3
    for one, other in zip(whole, in_parts, strict=True):
        torch.testing.assert_close(other, one, atol=2e-6, rtol=1e-4)
