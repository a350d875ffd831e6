"""Choose the device and the precision."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from pathlib import Path

import torch

from limner.errors import LimnerError


def choose_device(wanted: str) -> torch.device:
    """`auto`: CUDA, then Apple's GPU, then the CPU. Raises LimnerError if the device is missing.

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
                f"process {number} of this machine has no GPU: torch sees only {count}; start "
                f"{count} processes here (torchrun --nproc_per_node {count}), or set "
                "training.device=cpu"
            )
        device = torch.device("cuda", number)
    if not here.get(device.type, True):
        raise LimnerError(
            f"device {wanted}: torch {torch.__version__} finds none on this machine; use auto or "
            "cpu, or install a torch build that supports it"
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
        f"{key}: {describe_hardware(device)} has no hardware support for {name_of(asked)} and "
        f"would be many times slower; using {name_of(used)}"
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


LEAST_LIBRARY = 64
"""Bytes; the head of a library alone is longer."""
WRITTEN_WITHIN = 10.0
"""Seconds after which a library without content is not being written any more."""


def why_not_compile(device: torch.device) -> str | None:
    """None if torch.compile works here, else the reason, found by compiling something tiny."""
    try:
        remove_cut_libraries()
        torch.compile(lambda x: (x * 2 + 1).sum())(torch.ones(64, device=device))
    except Exception as error:  # whatever a missing or broken compiler raises
        return " ".join(str(error).split())[:200] or type(error).__name__
    return None


def remove_cut_libraries() -> list[Path]:
    """Remove what a compiler that was killed, or had no space, left in torch's cache: libraries
    without content, which torch would load, and fail, whenever it needs that code again.

    Returns:
        What was removed.
    """
    if (place := compile_cache()) is None:
        return []
    removed = []
    for path in place.glob("*/*.so"):
        with contextlib.suppress(OSError):  # another run may remove it, or own it
            about = path.stat()
            if about.st_size < LEAST_LIBRARY and time.time() - about.st_mtime > WRITTEN_WITHIN:
                path.unlink()
                removed.append(path)
    return removed


def compile_cache() -> Path | None:
    """Where torch keeps code that it has compiled, in a folder that is made if it is not there;
    None: this version does not say. Raises OSError if it cannot be made."""
    try:
        from torch._inductor.runtime.cache_dir_utils import cache_dir
    except ImportError:  # an inner module, which other versions of torch may not have
        return None
    return Path(cache_dir())


def allow_shapes(count: int) -> None:
    """Let each compiled block be compiled for so many shapes: beyond eight torch gives up, and runs
    what it has not compiled. (The second shape usually gives code for all later ones.)"""
    import torch._dynamo

    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, 2 * count)
