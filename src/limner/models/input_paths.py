"""Of a flow map: ways of its input beside those of its teacher."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class InputPaths(nn.Module):
    """How the patches are read, and what of them is put out directly, by the time and the span.

    A drawing of one step begins at noise, of which the picture has little and a velocity
    everything. A teacher that learned short steps reads this noise as it always does; what its
    blocks carry of it, or do not take off again, remains in the drawing as grain. So a flow map may
    read long steps otherwise, and pass its input by the blocks (docs/distill.md). All of it is zero
    at first, so that the network predicts what it did without.

    Args:
        width: of the tokens, and of the embedded time and span.
        channels: of the image.
        patch_width: numbers of a patch.
    """

    def __init__(self, width: int, channels: int, patch_width: int) -> None:
        super().__init__()
        self.gain = zero(nn.Linear(width, width))
        self.reading = zero(nn.Linear(patch_width, width))
        self.reading_gate = one(nn.Linear(width, width))
        self.share = zero(nn.Linear(width, channels))
        self.bypass = zero(nn.Linear(patch_width, patch_width))
        self.bypass_gate = one(nn.Linear(width, patch_width))

    def read(self, embedded: Tensor, patches: Tensor, time: Tensor) -> Tensor:
        """What is added to the embedded patches [B, N, D]; patches [B, N, C p p], time [B, D]."""
        time = F.silu(time)[:, None]
        return embedded * self.gain(time) + self.reading(patches) * self.reading_gate(time)

    def past_the_blocks(self, patches: Tensor, time: Tensor) -> Tensor:
        """What is added to the patches that the last layer puts out: [B, N, p p C]."""
        return self.bypass(patches) * self.bypass_gate(F.silu(time)[:, None])

    def shared(self, x: Tensor, time: Tensor) -> Tensor:
        """What is added to the output, number by number: [B, C, H, W]."""
        return self.share(F.silu(time))[..., None, None] * x


def zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def one(layer: nn.Linear) -> nn.Linear:
    """A factor of one, whatever the input."""
    nn.init.zeros_(layer.weight)
    nn.init.ones_(layer.bias)
    return layer
