"""Find the first NaN or inf tensor of a failing step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from limner.data.examples import Batch
from limner.device import name_of


def diagnose(
    model: nn.Module, loss_of: Callable[[Batch], Tensor], batch: Batch, dtype: torch.dtype
) -> str:
    """Describe the first tensor that is not finite, and what to try.

    Looks at weights, then at the batch, then at each layer's output in the order of computation,
    then at each gradient in the order of the backward pass. Leaves no gradients behind.

    Args:
        model: the network, not compiled or compiled block by block.
        loss_of: computes the losses [B] of a batch with `model`.
        batch: a batch that failed, on the model's device.
    """
    where = _first(model, loss_of, batch)
    for parameter in model.parameters():
        parameter.grad = None
    return f"{where}. Try {', '.join(_remedies(where, dtype))}."


def _first(model: nn.Module, loss_of: Callable[[Batch], Tensor], batch: Batch) -> str:
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"the weight {name} {_shape(parameter)} itself is {_what(parameter)}"
    for name in ("image", "noise", "u"):
        if not _finite(part := getattr(batch, name)):
            return f"the batch's {name} {_shape(part)} is {_what(part)}"
    found: list[str] = []
    hooks = []
    for name, module in model.named_modules():
        if name:
            hooks.append(module.register_forward_hook(_watch(name, found)))
    try:
        with torch.compiler.set_stance("force_eager"):
            loss = loss_of(batch)
            if found:
                return found[0]
            if not _finite(loss):
                return f"the loss is {_what(loss)} although the output of every layer is finite"
            loss.mean().backward()
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        return found[0]
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not _finite(parameter.grad):
            return f"the gradient of {name} {_shape(parameter)} is {_what(parameter.grad)}"
    return "computing the step again gives finite values; the fault is not reproducible"


def _watch(name: str, found: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if found or not isinstance(output, Tensor):
            return
        kind = type(module).__name__
        if any(not _finite(t) for t in inputs if isinstance(t, Tensor)):
            parent = name.rpartition(".")[0] or "the model"
            found.append(
                f"the first non-finite value is computed in {parent}, between its layers, and "
                f"passed to {name} ({kind})"
            )
        elif not _finite(output):
            sizes = [f"{t.abs().max().item():.3g}" for t in inputs if _real(t) and t.numel()]
            found.append(
                f"the first non-finite value is in the output of {name} ({kind}, {_shape(output)} "
                f"in {name_of(output.dtype)}): {_what(output)}, from inputs up to "
                f"{', '.join(sizes) or 'nothing'}"
            )
        elif output.requires_grad:

            def look(gradient: Tensor) -> None:
                if not found and not _finite(gradient):
                    found.append(
                        "the first non-finite value in the backward pass is in the gradient of the "
                        f"output of {name} ({kind}, {_shape(gradient)}): {_what(gradient)}"
                    )

            output.register_hook(look)

    return hook


def _remedies(where: str, dtype: torch.dtype) -> list[str]:
    if "batch's" in where:
        return ["running limner precompute with a new cache.folder", "other pictures"]
    said = ["a lower training.learning_rate", "a lower training.max_grad_norm"]
    if dtype == torch.float16:
        return ["training.mixed_precision=bf16 or no (the maximum of float16 is 65,504)", *said]
    if dtype == torch.bfloat16:
        said.append("training.mixed_precision=no, to check whether precision is the cause")
    if "weight" in where:
        said.insert(0, "resuming from an older checkpoint with --resume")
    return said


def _real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _what(tensor: Tensor) -> str:
    nans, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    counts = [f"{n:,} {word}" for n, word in ((nans, "NaN"), (infinite, "infinite")) if n]
    return f"{' and '.join(counts)} of {tensor.numel():,}"


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
