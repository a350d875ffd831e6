"""Which processor to use, in which precision, and how fast it multiplies."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from limner.errors import LimnerError

T = TypeVar("T")


def choose_device(wanted: str) -> torch.device:
    """`auto`: CUDA, then Apple's GPU, then the processor. Raises LimnerError for one not here.

    Of several processes on a machine each has a GPU of its own: that of its number there, which
    torchrun, accelerate, and Slurm's step say in LOCAL_RANK.
    """
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        wanted = "cuda" if here["cuda"] else "mps" if here["mps"] else "cpu"
    device = torch.device(wanted)
    if device == torch.device("cuda") and here["cuda"] and "LOCAL_RANK" in os.environ:
        number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= count:
            raise LimnerError(
                f"process {number} of this machine has no GPU of its own: torch sees {count}; "
                f"start {count} processes here (torchrun --nproc_per_node {count}), or set "
                "training.device=cpu"
            )
        device = torch.device("cuda", number)
    if not here.get(device.type, True):
        raise LimnerError(
            f"device {wanted}: torch {torch.__version__} finds none on this machine; take auto or "
            "cpu, or install the torch that is built for it"
        )
    return device


def describe_hardware(device: torch.device) -> str:
    """What computes, without how many of it: "NVIDIA T4", "this processor"."""
    return "this processor" if device.type == "cpu" else describe(device)


def describe(device: torch.device) -> str:
    """A name for people, such as "NVIDIA H100" or "x86_64 processor, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    return f"{platform.machine()} processor, {torch.get_num_threads()} threads"


def choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    """What the network is computed in; weights, their average, and sums stay float32.

    Args:
        wanted: a value of `training.mixed_precision`. What the device does not multiply in hardware
            is replaced by the best that it does; `precision_note` says so.
    """
    if wanted == "auto":
        return best_precision(device)
    asked = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[wanted]
    return usable_precision(asked, device)


def usable_precision(asked: torch.dtype, device: torch.device) -> torch.dtype:
    """A precision that was asked for, or the best one of a device that would emulate it."""
    return asked if multiplies_in_hardware(asked, device) else best_precision(device)


def best_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, else float32."""
    return torch.bfloat16 if fast_bfloat16(device) else torch.float32


def precision_note(asked: torch.dtype | str, device: torch.device, key: str) -> str | None:
    """What is computed in instead of the precision that was asked for; None if it is that one.

    Args:
        asked: a dtype, or a value of `training.mixed_precision`.
        key: that asked for it, for the sentence.
    """
    if isinstance(asked, str):
        if asked in ("auto", "no"):
            return None
        asked = torch.float16 if asked == "fp16" else torch.bfloat16
    if (used := usable_precision(asked, device)) == asked:
        return None
    return (
        f"{key}: {describe_hardware(device)} does not multiply {name_of(asked)} in hardware and "
        f"would be many times slower; computing in {name_of(used)}"
    )


def name_of(dtype: torch.dtype) -> str:
    """ "float32" and not "torch.float32"."""
    return str(dtype).removeprefix("torch.")


def part_precision(dtype: torch.dtype) -> torch.dtype:
    """What pretrained parts compute in beside a model in `dtype`: never float16, in which the
    activations of some autoencoders and text encoders are too large for a number."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware, faster than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return _processor_has("avx512_bf16", "amx_bf16")
    return False


def multiplies_in_hardware(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether matrices of this precision are multiplied in hardware, and not emulated: float16 on a
    processor that lacks it takes 100 to 400 times as long as float32."""
    if dtype == torch.float32:
        return True
    if dtype == torch.bfloat16:
        # Apple's GPUs have it, though `auto` does not take it there; so have newer Arm processors.
        arm = device.type == "cpu" and _processor_has("bf16", "sve_bf16")
        return fast_bfloat16(device) or arm or device.type == "mps"
    return device.type != "cpu" or _processor_has("avx512_fp16", "amx_fp16")


def _processor_has(*features: str) -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(feature) for feature in features)


def keep_freed_memory() -> None:
    """Let the C library keep what a step frees, for the next step to use; on Linux only.

    glibc gives large blocks back to the system and the system must then clear each of their pages
    again: 30,000 page faults per step of the demo, 1.08 times the time (benchmarks/step_cost.py).
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library, such as musl
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, at its largest


def give_back_freed_memory() -> None:
    """The opposite, once: before something large is loaded that training does not need."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the processor."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    # The processor's allocator and Apple's have no type of their own; cuBLAS has its own words.
    said = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    return any(words in str(error) for words in said)


def in_parts_that_fit(size: int, do: Callable[[int], T]) -> T:
    """`do(size)`, or with half of that, and half again, until memory suffices for it."""
    while True:
        try:
            return do(size)
        except Exception as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        # Outside of the handler, which keeps what the failed attempt had in memory.
        give_back_freed_memory()
        size //= 2


def why_not_compile(device: torch.device) -> str | None:
    """None if torch.compile works here, else the reason, found by compiling something tiny."""
    try:
        torch.compile(lambda x: (x * 2 + 1).sum())(torch.ones(64, device=device))
    except Exception as error:  # whatever a missing or broken compiler raises
        return " ".join(str(error).split())[:200] or type(error).__name__
    return None


def allow_shapes(count: int) -> None:
    """Let each compiled block be compiled for so many shapes: beyond eight torch gives up, and runs
    what it has not compiled. (The second shape usually gives code for all later ones.)"""
    import torch._dynamo

    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, 2 * count)


def matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """The best rate of a square matrix product here and now, FLOP/s.

    Small products first; larger ones, which reach more, as long as there is time for six of them.

    Args:
        seconds: it takes about so long at most, on any device and in any precision.
    """
    largest = 8192 if device.type == "cuda" else 2048
    began, best, side = time.perf_counter(), 0.0, 128
    while side <= largest:
        a = torch.randn(side, side, device=device).to(dtype)
        left = seconds - (time.perf_counter() - began)
        if best and 6 * 2 * side**3 / best > left:
            break
        for _ in range(6):
            with synchronised(device):
                start = time.perf_counter()
                a @ a
            best = max(best, 2 * side**3 / (time.perf_counter() - start))
        side *= 2
    return best


@contextlib.contextmanager
def synchronised(device: torch.device) -> Iterator[None]:
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def training_flops(model: nn.Module, inputs: tuple[Any, ...]) -> float:
    """FLOPs of training on one picture: a forward pass counted, times three for the backward.

    Args:
        inputs: of one picture, as the model takes them.
    """
    # The one fused attention that torch has a formula for and does not count.
    on_processors = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    formula = {on_processors: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
    counter = FlopCounterMode(display=False, custom_mapping=formula)
    with torch.no_grad(), counter:
        model(*inputs)
    return 3.0 * counter.get_total_flops()
