"""torch.compile where it works: each block class is compiled once and shared by its instances."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from pathlib import Path

import psutil
import torch

from limner import device as devices
from limner.models.shape_log import log_shapes
from limner.training.run import Run

log = logging.getLogger(__name__)

BUILT_IN = "_CxxBuild"
"""How the folder in which torch compiles NAME.so goes on after that name."""
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
    end_running_compilers()
    if (place := devices.compile_cache()) is not None:
        _remove_unfinished(place.resolve())


def end_running_compilers() -> None:
    """End those that run now. It takes no lock, so that a signal handler may call it: once the main
    thread has been interrupted, what its compiler had started is nobody's child any more."""
    if (place := devices.compile_cache()) is None:
        return
    place = place.resolve()
    for _ in range(3):  # one may just have been started
        found = [p for p in psutil.Process().children(recursive=True) if _works_in(p, place)]
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _, alive = psutil.wait_procs(found, timeout=PATIENCE)
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(alive, timeout=PATIENCE)
        if not found:
            break
        time.sleep(0.1)


def _works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return Path(process.cwd()).resolve().is_relative_to(folder)
    except (psutil.Error, OSError):  # it has ended, or is another's
        return False


def _remove_unfinished(place: Path) -> None:
    """Remove what this process had begun to compile: torch compiles NAME.so in a folder beside it,
    which is gone once that is whole. What another run compiles there just now stays."""
    since = psutil.Process().create_time()
    begun = []
    for folder in place.glob(f"*/*{BUILT_IN}"):
        with contextlib.suppress(OSError):
            if folder.stat().st_mtime >= since - 1:
                begun.append(folder)
    if not begun:
        return
    others = list(psutil.process_iter())
    for folder in begun:
        if any(_works_in(process, folder) for process in others):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        for ending in (".so", ".o", ".pyd", ".obj"):
            with contextlib.suppress(OSError):
                folder.with_name(folder.name.removesuffix(BUILT_IN) + ending).unlink()


def _forget_waiting() -> None:
    """Drop what waits for a compiler. (Python, at its exit, would have it all compiled.)"""
    try:
        from torch._inductor.async_compile import AsyncCompile

        if AsyncCompile.pool.cache_info().currsize:
            AsyncCompile.pool().shutdown(wait=False, cancel_futures=True)
            AsyncCompile.pool.cache_clear()  # the next one who compiles gets a new one
    except (ImportError, AttributeError):  # as above
        pass
