"""torch.compile where it works: each block class is compiled once and shared by its instances."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path

import psutil
import torch

from limner import device as devices
from limner.models.shape_log import log_shapes
from limner.training.run import Run

log = logging.getLogger(__name__)

PATIENCE = 3.0
"""Seconds in which a compiler that is asked to end does so."""


def compile_model(run: Run) -> None:
    """Compile the blocks and the last layer of the run's model, or say why not."""
    if log.isEnabledFor(logging.DEBUG):
        log_shapes(run.model)  # compiled code does not call its hooks
        return
    if not run.config.training.compile_model:
        return
    if reason := devices.why_not_compile(run.device):
        log.info(f"torch.compile is off, so training is slower: {reason}")
        return
    log.info("the first step compiles the model, which may take a minute or two")
    if run.config.data.buckets:
        devices.allow_shapes(len(run.config.data.buckets))
    for part in (run.model.denoiser, run.model.text_encoder):
        for block in getattr(part, "blocks", []):
            if run.sharded:  # gathering the weights stays outside
                block.forward = torch.compile(block.forward)
            else:
                block.compile()
    run.model.denoiser.final_layer.compile()


def is_of_the_compiler(error: BaseException) -> bool:
    """Whether it is torch.compile that failed, as when a Ctrl-C in the terminal ended the C++
    compiler, too."""
    try:
        from torch._dynamo.exc import TorchDynamoException
    except ImportError:  # an inner module, which other versions of torch may not have
        return False
    return isinstance(error, TorchDynamoException)


def end_compilers() -> None:
    """End the C++ compilers that torch.compile has started, which Python would wait for when it
    exits, and remove what they were writing: torch takes any file of the right name for whole."""
    _forget_waiting()
    place = devices.compile_cache()
    if place is None:
        return
    place = place.resolve()
    for _ in range(3):  # one may just have been started
        found = _compilers(place)
        for process, _ in found:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _, alive = psutil.wait_procs([process for process, _ in found], timeout=PATIENCE)
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(alive, timeout=PATIENCE)
        for path in {path for _, path in found if path is not None}:
            with contextlib.suppress(OSError):
                path.unlink()
        if not found:
            break
        time.sleep(0.1)


def _forget_waiting() -> None:
    """Drop what waits for a compiler. (Python, at its exit, would have it all compiled.)"""
    try:
        from torch._inductor.async_compile import AsyncCompile

        if AsyncCompile.pool.cache_info().currsize:
            AsyncCompile.pool().shutdown(wait=False, cancel_futures=True)
            AsyncCompile.pool.cache_clear()  # the next one who compiles gets a new one
    except (ImportError, AttributeError):  # as above
        pass


def _compilers(place: Path) -> list[tuple[psutil.Process, Path | None]]:
    """The processes that work in torch's cache, and which of its files each writes."""
    found: list[tuple[psutil.Process, Path | None]] = []
    for process in psutil.Process().children(recursive=True):
        try:
            folder, words = Path(process.cwd()).resolve(), process.cmdline()
        except (psutil.Error, OSError):  # it has ended, or is another's
            continue
        if not folder.is_relative_to(place):
            continue
        target = folder / words[words.index("-o") + 1] if "-o" in words[:-1] else None
        inside = target is not None and target.is_relative_to(place)
        found.append((process, target if inside else None))
    return found
